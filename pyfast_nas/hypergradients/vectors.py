"""Algebra of vectors that are lists of tensors, none among them too; scalars stay on the device.

What is passed over again and again is `pyfast_nas.ops.tensor_list`, one kernel for a whole list.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pyfast_nas.ops import tensor_list

__all__ = [
    "axpy_",
    "columns",
    "copy_",
    "difference",
    "dot",
    "entrywise",
    "flatten",
    "neumann_step_",
    "norm",
    "perturb_",
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
    parts = [tensor_list.dot(*part) for part in _by_dtype(xs, ys)]
    return parts[0] if len(parts) == 1 else sum(parts, torch.zeros(()))


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
    parts = [tensor_list.norm(*part) for part in _by_dtype(xs)]
    return parts[0] if len(parts) == 1 else sum(map(torch.square, parts), torch.zeros(())).sqrt()


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
    return list(torch._foreach_mul(list(xs), _beside(xs, factor)))


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
    for part_of_ys, part_of_xs in _by_dtype(ys, xs):
        tensor_list.axpy_(part_of_ys, _beside(ys, factor), part_of_xs)


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
    """Return ``radius / |direction|``, and 0 where the direction is zero: then no step is.

    Example:
        >>> step_size([torch.tensor([3.0, 4.0])], 0.1), step_size([torch.zeros(2)], 0.1)
        (tensor(0.0200), tensor(0.))
    """
    length = norm(direction)
    # Infinite directions do not pass for a short way.
    step = radius / length + (length - length)
    return torch.where(length == 0, torch.zeros_like(step), step)


def smallest(x: Tensor) -> float:
    """Return the smallest number that the dtype of ``x`` holds with all its digits.

    Example:
        >>> smallest(torch.ones(())) > 0
        True
    """
    return torch.finfo(x.dtype).tiny


@torch.no_grad()
def perturb_(
    places: Vector, xs: Vector, step: Tensor, direction: Vector, sign: float = 1.0
) -> None:
    """Write ``x + sign * step * direction`` into ``places``, parameters included.

    Example:
        >>> places = [torch.zeros(2)]
        >>> perturb_(places, [torch.ones(2)], torch.tensor(0.5), [torch.ones(2)])
        >>> places
        [tensor([1.5000, 1.5000])]
    """
    for out, start, along in _by_dtype(places, xs, direction):
        tensor_list.perturb(start, step, along, c=sign, out=out)


def difference(plus: Vector, minus: Vector, step: Tensor) -> list[Tensor]:
    """Return the central difference ``(plus - minus) / (2 * step)``, 0 where the step is.

    Example:
        >>> difference([torch.ones(2)], [torch.zeros(2)], torch.tensor(0.25))
        [tensor([2., 2.])]
    """
    apart = zeros_like(plus)
    for out, *ends in _by_dtype(apart, plus, minus):
        tensor_list.difference(*ends, step, out=out)
    return apart


def neumann_step_(series: Vector, term: Vector, product: Vector, gamma: Scalar) -> None:
    """Subtract ``gamma * product`` from ``term``, then add ``term`` to ``series``.

    Example:
        >>> series, term = [torch.ones(1)], [torch.ones(1)]
        >>> neumann_step_(series, term, [torch.full((1,), 2.0)], 0.25)
        >>> series, term
        ([tensor([1.5000])], [tensor([0.5000])])
    """
    for part in _by_dtype(series, term, product):
        tensor_list.neumann_step_(*part, _beside(series, gamma))


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


def _beside(xs: Vector, factor: Scalar) -> Scalar:
    """Bring a factor to the vector: a learning rate in a tensor may stand on another device."""
    return factor.to(xs[0].device) if isinstance(factor, Tensor) else factor


def _by_dtype(*lists: Vector) -> Iterator[tuple[Vector, ...]]:
    """Yield the parts of lists that the first of them has in one dtype; nothing of empty ones."""
    kinds = dict.fromkeys(x.dtype for x in lists[0])
    if len(kinds) == 1:
        yield lists
        return
    for kind in kinds:
        yield tuple(
            [x for x, like in zip(xs, lists[0], strict=True) if like.dtype is kind] for xs in lists
        )
