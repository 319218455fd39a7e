"""Algebra of vectors that are lists of tensors; scalars stay on the device."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

__all__ = [
    "axpy_",
    "cg_step_",
    "columns",
    "copy_",
    "difference",
    "dot",
    "entrywise",
    "flatten",
    "neumann_step_",
    "norm",
    "perturb",
    "scaled",
    "smallest",
    "step_size",
    "total",
    "unflatten",
    "zeros_like",
]

Vector = Sequence[Tensor]
Scalar = float | Tensor


def dot(xs: Vector, ys: Vector) -> Tensor:
    """Return the inner product, a scalar on the device.

    Example:
        >>> dot([torch.ones(2), torch.tensor(3.0)], [torch.ones(2), torch.tensor(2.0)])
        tensor(8.)
    """
    if not xs:
        return torch.zeros(())
    return torch.stack([x.sum() for x in entrywise(xs, ys)]).sum()


def entrywise(xs: Vector, ys: Vector) -> list[Tensor]:
    """Return the products of entries.

    Example:
        >>> entrywise([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 4.0])])
        [tensor([3., 8.])]
    """
    return list(torch._foreach_mul(list(xs), list(ys))) if xs else []


def norm(xs: Vector) -> Tensor:
    """Return the 2-norm of all entries together, a scalar on the device.

    Example:
        >>> norm([torch.tensor([3.0]), torch.tensor(4.0)])
        tensor(5.)
    """
    return torch.stack(torch._foreach_norm(list(xs))).norm() if xs else torch.zeros(())


def zeros_like(xs: Vector) -> list[Tensor]:
    """Return a vector of zeros of the same shapes.

    Example:
        >>> zeros_like([torch.ones(2)])
        [tensor([0., 0.])]
    """
    return [torch.zeros_like(x, requires_grad=False) for x in xs]


def scaled(xs: Vector, factor: Scalar) -> list[Tensor]:
    """Return ``factor * x``.

    Example:
        >>> scaled([torch.ones(2)], 3.0)
        [tensor([3., 3.])]
    """
    if not xs:
        return []
    # A learning rate in a tensor may stand on another device than the weights.
    factor = factor.to(xs[0].device) if isinstance(factor, Tensor) else factor
    return list(torch._foreach_mul(list(xs), factor))


def total(xs: Vector, ys: Vector, factor: Scalar = 1.0) -> list[Tensor]:
    """Return ``x + factor * y``.

    Example:
        >>> total([torch.ones(2)], [torch.ones(2)], 2.0)
        [tensor([3., 3.])]
    """
    if not xs:
        return []
    if isinstance(factor, Tensor):
        return list(torch._foreach_add(list(xs), scaled(ys, factor)))
    return list(torch._foreach_add(list(xs), list(ys), alpha=factor))


def axpy_(ys: Vector, factor: Scalar, xs: Vector) -> None:
    """Add ``factor * x`` to ``y`` in place.

    Example:
        >>> ys = [torch.ones(2)]
        >>> axpy_(ys, 2.0, [torch.ones(2)])
        >>> ys
        [tensor([3., 3.])]
    """
    if ys and isinstance(factor, Tensor):
        torch._foreach_add_(list(ys), scaled(xs, factor))
    elif ys:
        torch._foreach_add_(list(ys), list(xs), alpha=factor)


@torch.no_grad()
def copy_(ys: Vector, xs: Vector) -> None:
    """Write the values of ``x`` into ``y``, parameters included.

    Example:
        >>> ys = [torch.zeros(2, requires_grad=True)]
        >>> copy_(ys, [torch.ones(2)])
        >>> ys
        [tensor([1., 1.], requires_grad=True)]
    """
    if ys:
        torch._foreach_copy_(list(ys), list(xs))


def step_size(direction: Vector, radius: float) -> Tensor:
    """Return ``radius / |direction|``, and 1 where the direction is zero: then no step is.

    Example:
        >>> step_size([torch.tensor([3.0, 4.0])], 0.1), step_size([torch.zeros(2)], 0.1)
        (tensor(0.0200), tensor(1.))
    """
    length = norm(direction)
    return torch.where(length > smallest(length), radius / length, torch.ones_like(length))


def smallest(x: Tensor) -> float:
    """Return the smallest number that the dtype of ``x`` holds with all its digits.

    Example:
        >>> smallest(torch.ones(())) > 0
        True
    """
    return torch.finfo(x.dtype).tiny


def perturb(xs: Vector, step: Tensor, direction: Vector) -> list[Tensor]:
    """Return ``x + step * direction``, without a graph.

    Example:
        >>> perturb([torch.ones(2)], torch.tensor(0.5), [torch.ones(2)])
        [tensor([1.5000, 1.5000])]
    """
    return total(xs, direction, step)


def difference(plus: Vector, minus: Vector, step: Tensor) -> list[Tensor]:
    """Return the central difference ``(plus - minus) / (2 * step)``.

    Example:
        >>> difference([torch.ones(2)], [torch.zeros(2)], torch.tensor(0.25))
        [tensor([2., 2.])]
    """
    return scaled(torch._foreach_sub(list(plus), list(minus)), 0.5 / step) if plus else []


def neumann_step_(series: Vector, term: Vector, product: Vector, gamma: Scalar) -> None:
    """Subtract ``gamma * product`` from ``term``, then add ``term`` to ``series``.

    Example:
        >>> series, term = [torch.ones(1)], [torch.ones(1)]
        >>> neumann_step_(series, term, [torch.full((1,), 2.0)], 0.25)
        >>> series, term
        ([tensor([1.5000])], [tensor([0.5000])])
    """
    axpy_(term, -gamma, product)
    axpy_(series, 1.0, term)


def cg_step_(
    solution: Vector,
    residual: Vector,
    direction: Vector,
    product: Vector,
    square: Tensor,
    curvature: Tensor,
) -> Tensor:
    """Make one step of conjugate gradients along ``direction``.

    The residual moves by the operator that gave the step length, and the new direction is made
    of the new residual.

    Args:
        solution: Moved by ``a * direction`` with ``a = square / curvature``.
        residual: Moved by ``-a * product``.
        direction: Becomes the next direction.
        product: The operator applied to ``direction``.
        square: Squared norm of the residual.
        curvature: Inner product of ``direction`` and ``product``.

    Returns:
        The squared norm of the new residual.

    Example:
        >>> z, r, p = [torch.zeros(1)], [torch.ones(1)], [torch.ones(1)]
        >>> image = [torch.full((1,), 4.0)]
        >>> cg_step_(z, r, p, image, torch.tensor(1.0), torch.tensor(4.0)), z
        (tensor(0.), [tensor([0.2500])])
    """
    length = square / curvature
    axpy_(solution, length, direction)
    axpy_(residual, -length, product)
    new_square = dot(residual, residual)
    copy_(direction, total(residual, direction, new_square / square))
    return new_square


def flatten(xs: Vector) -> Tensor:
    """Return all entries one after the other.

    Example:
        >>> flatten([torch.ones(2), torch.tensor(3.0)])
        tensor([1., 1., 3.])
    """
    return torch.cat([x.reshape(-1) for x in xs])


def unflatten(flat: Tensor, like: Vector) -> list[Tensor]:
    """Return the vector of the shapes of ``like`` whose entries are those of ``flat``.

    Example:
        >>> unflatten(torch.arange(3.0), [torch.ones(2), torch.tensor(3.0)])
        [tensor([0., 1.]), tensor(2.)]
    """
    parts = flat.split([x.numel() for x in like])
    return [part.view(x.shape).to(x.dtype) for part, x in zip(parts, like, strict=True)]


def columns(
    product: Callable[[list[Tensor]], list[Tensor]], like: Vector, places: Iterable[int]
) -> Tensor:
    """Return columns of an operator that is known by its products, side by side.

    Example:
        >>> columns(lambda u: [2.0 * u[0]], [torch.ones(2)], [1])
        tensor([[0.],
                [2.]])
    """
    found = []
    for place in places:
        unit = flatten(zeros_like(like))
        unit[place] = 1.0
        found.append(flatten(product(unflatten(unit, like))))
    return torch.stack(found, dim=1)
