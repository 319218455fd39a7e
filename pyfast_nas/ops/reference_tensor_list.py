"""The meaning of the operators on lists of tensors in plain PyTorch, one tensor after the other.

Values are computed in float32 at least and rounded once; sums over all tensors of a list are added
up in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "axpy_",
    "cg_step_",
    "difference_into",
    "dot",
    "finished_dot",
    "neumann_step_",
    "perturb_into",
    "scale_",
    "views_of",
]

# What becomes of a sum, and the numbers of a state of conjugate gradients: csrc/math/tensor_list.h.
SUM, ROOT, STEP = range(3)
RESIDUAL, ALPHA, BETA, STOPPED = range(4)

Lists = Sequence[Tensor]
Number = float | Tensor


def axpy_(ys: Lists, xs: Lists, a: Number) -> None:
    """Add a x to y."""
    for y, x in zip(ys, xs, strict=True):
        y.copy_(_wide(y) + a * _wide(x))


def scale_(xs: Lists, a: Number) -> None:
    """Multiply x by a."""
    for x in xs:
        x.copy_(a * _wide(x))


def perturb_into(outs: Lists, ws: Lists, vs: Lists, a: Number) -> None:
    """Write w + a v; w itself where a is zero."""
    for out, w, v in zip(outs, ws, vs, strict=True):
        factor = torch.as_tensor(a, dtype=torch.float64, device=w.device)
        moved = _wide(w) + _as(w, factor) * _wide(v)
        out.copy_(torch.where(factor == 0, _wide(w), moved))


def difference_into(outs: Lists, xs: Lists, ys: Lists, eps: Number, number: float = 0.5) -> None:
    """Write number (x - y) / eps; zero where eps is zero, NaN where it is infinite."""
    for out, x, y in zip(outs, xs, ys, strict=True):
        divisor = torch.as_tensor(eps, dtype=torch.float64, device=x.device)
        over = number / divisor + (divisor - divisor)
        factor = torch.where(divisor == 0, torch.zeros_like(divisor), over)
        apart = _as(x, factor) * (_wide(x) - _wide(y))
        out.copy_(torch.where(factor == 0, torch.zeros_like(apart), apart))


def neumann_step_(ps: Lists, us: Lists, hs: Lists, gamma: Number) -> None:
    """Take gamma h from u, then add u to p."""
    for p, u, h in zip(ps, us, hs, strict=True):
        term = _wide(u) - gamma * _wide(h)
        p.copy_(_wide(p) + term)
        u.copy_(term)


def dot(xs: Lists, ys: Lists) -> Tensor:
    """Return <x, y> over all tensors, in float64."""
    return sum(((x.double() * y.double()).sum() for x, y in zip(xs, ys, strict=True)))


def finished_dot(xs: Lists, ys: Lists, finish: int, radius: float) -> Tensor:
    """Return the sum, its root or the step of central differences, as a scalar of the lists'."""
    total = dot(xs, ys)
    if finish != SUM:
        total = total.sqrt()
    if finish == STEP:
        step = torch.where(total == 0, torch.zeros_like(total), radius / total)
        total = step + (total - total)  # NaN where the length is not finite
    return total.to(_wide(xs[0]).dtype)


def cg_step_(zs: Lists, rs: Lists, ps: Lists, hs: Lists, state: Tensor) -> None:
    """Take a step of conjugate gradients with h = A p; nothing once it has stopped."""
    residual, stopped = state[RESIDUAL].clone(), state[STOPPED] != 0
    curvature, is_solved = dot(ps, hs), residual == 0
    stops = stopped | ((curvature <= 0) & ~is_solved)
    nothing = torch.zeros_like(residual)
    alpha = torch.where(is_solved | stops, nothing, residual / curvature)
    _unless(stops, zs, [_wide(z) + _as(z, alpha) * _wide(p) for z, p in zip(zs, ps, strict=True)])
    _unless(stops, rs, [_wide(r) - _as(r, alpha) * _wide(h) for r, h in zip(rs, hs, strict=True)])
    after = dot(rs, rs)
    beta = torch.where(is_solved, nothing, after / residual)
    _unless(stops, ps, [_wide(r) + _as(p, beta) * _wide(p) for r, p in zip(rs, ps, strict=True)])
    ends = torch.ones_like(residual)
    kept = torch.stack([residual, nothing, state[BETA], ends])
    found = torch.where(stops, kept, torch.stack([after, alpha, beta, nothing]))
    state.copy_(torch.where(stopped, state, found))


def _unless(stops: Tensor, places: Lists, values: Lists) -> None:
    for place, value in zip(places, values, strict=True):
        place.copy_(torch.where(stops, _wide(place), value))


def views_of(buffer: Tensor, layout: Tensor) -> list[Tensor]:
    """Return the tensors of a layout in a buffer: for each its offset, rank, sizes and strides."""
    numbers, views, at = layout.tolist(), [], 0
    while at < len(numbers):
        offset, rank = numbers[at : at + 2]
        sizes, strides = numbers[at + 2 : at + 2 + rank], numbers[at + 2 + rank :][:rank]
        views.append(buffer.as_strided(sizes, strides, buffer.storage_offset() + offset))
        at += 2 + 2 * rank
    return views


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _as(x: Tensor, number: Tensor) -> Tensor:
    return number.to(_wide(x).dtype)
