"""The meaning of ``norm_mixed_sum`` in plain PyTorch: batch norms written out, and their sum.

Differentiable to any order and under every transform, which torch's own batch norm is not: a
forward-mode derivative of it, differentiated in reverse, comes out wrong.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyfast_nas.ops.candidates import Norm

__all__ = [
    "norm_mixed_sum",
    "planned_norm_mixed_sum",
    "planned_norm_mixed_sum_backward",
    "rebuild_norms",
]


def norm_mixed_sum(
    xs: Sequence[Tensor], weights: Tensor, norms: Sequence[Norm | None]
) -> tuple[Tensor, Tensor]:
    """Return sum_k weights[k] * norm_k(xs[k]) and the statistics of every norm.

    Half types are normalised and summed in float32 and rounded once.
    """
    dtype = torch.promote_types(xs[0].dtype, weights.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    y: Tensor | None = None
    statistics: list[Tensor] = []
    for weight, x, norm in zip(weights.to(wide).unbind(), xs, norms, strict=True):
        x = x.to(wide)
        term = weight * (x if norm is None else _normalise(x, norm, statistics))
        y = term if y is None else y + term
    if not statistics:
        return y.to(dtype), y.new_empty((0, 2, y.shape[1]), dtype=torch.float64)
    return y.to(dtype), torch.stack(statistics)


def _normalise(x: Tensor, norm: Norm, statistics: list[Tensor]) -> Tensor:
    if norm.mean is None:
        others = [dim for dim in range(x.dim()) if dim != 1]
        mean = x.mean(others)
        centred = x - _per_channel(mean, x)
        var = centred.square().mean(others)
    else:
        mean, var = norm.mean.to(x.dtype), norm.var.to(x.dtype)
        centred = x - _per_channel(mean, x)
    statistics.append(torch.stack([mean.detach(), var.detach()]).double())
    y = centred * _per_channel((var + norm.eps).rsqrt(), x)
    if norm.gamma is None:
        return y
    gamma, beta = norm.gamma.to(x.dtype), norm.beta.to(x.dtype)
    return y * _per_channel(gamma, x) + _per_channel(beta, x)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.dim() - 2))


def rebuild_norms(
    params: Sequence[Tensor], given: Sequence[Tensor], kinds: Sequence[int], eps: Sequence[float]
) -> list[Norm | None]:
    """Return the norms that the operator's numbers and tensors stand for.

    A kind is 0 for none, 1 for a plain norm and 2 for an affine one, plus 4 with given statistics.
    """
    params, given, eps = iter(params), iter(given), iter(eps)
    norms: list[Norm | None] = []
    for kind in kinds:
        if kind == 0:
            norms.append(None)
            continue
        gamma, beta = (next(params), next(params)) if kind & 2 else (None, None)
        mean, var = (next(given), next(given)) if kind & 4 else (None, None)
        norms.append(Norm(gamma, beta, mean, var, next(eps)))
    return norms


def planned_norm_mixed_sum(
    xs: Sequence[Tensor],
    weights: Tensor,
    params: Sequence[Tensor],
    given: Sequence[Tensor],
    kinds: Sequence[int],
    eps: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Return the same for the numbers and tensors that the operator takes."""
    return norm_mixed_sum(xs, weights, rebuild_norms(params, given, kinds, eps))


def planned_norm_mixed_sum_backward(
    grad: Tensor,
    xs: Sequence[Tensor],
    weights: Tensor,
    params: Sequence[Tensor],
    statistics: Tensor,
    kinds: Sequence[int],
    eps: Sequence[float],
    wanted_xs: Sequence[int],
    wants_weights: bool,
    wanted_params: Sequence[int],
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Return the gradients of the wanted inputs, of the weights (or nothing), of the parameters.

    Statistics of the batch are taken as they were computed: this is the value of the gradient, not
    a formula to be differentiated again.
    """
    wide = torch.promote_types(grad.dtype, torch.float32)
    g, w = grad.to(wide), weights.to(wide)
    others = [dim for dim in range(g.dim()) if dim != 1]
    total, count = g.sum(others), g.numel() // max(1, g.shape[1])
    left, rows, all_eps = iter(params), iter(statistics.unbind()), iter(eps)
    of_xs, of_weights, of_params = [], [], []
    for x, weight, kind in zip(xs, w.unbind(), kinds, strict=True):
        x = x.to(wide)
        if kind == 0:
            of_xs.append(weight * g)
            of_weights.append((g * x).sum())
            continue
        # The statistics of nothing are NaN, the gradients zero.
        mean, var = next(rows).to(wide) if count else g.new_zeros((2, g.shape[1]), dtype=wide)
        rho = (var + next(all_eps)).rsqrt()
        gamma, beta = torch.ones_like(rho), torch.zeros_like(rho)
        if kind & 2:
            gamma, beta = next(left).to(wide), next(left).to(wide)
        centred = x - _per_channel(mean, x)
        dots = (g * centred).sum(others)
        scale = weight * gamma * rho
        of_x = _per_channel(scale, x) * g
        if not kind & 4:
            slope, shift = scale * rho.square() * dots / count, scale * total / count
            of_x = of_x - _per_channel(slope, x) * centred - _per_channel(shift, x)
        of_xs.append(of_x)
        of_weights.append((gamma * rho * dots + beta * total).sum())
        if kind & 2:
            of_params += [weight * rho * dots, weight * total]
    grad_weights = torch.stack(of_weights).to(weights.dtype) if wants_weights else None
    return (
        [of_xs[k].to(xs[k].dtype) for k in wanted_xs],
        weights.new_empty(0) if grad_weights is None else grad_weights,
        [of_params[i].to(params[i].dtype) for i in wanted_params],
    )
