"""Lists of tensors, the operations on them, and the check against the float64 reference."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyfast_nas import _ext
from pyfast_nas.ops import tensor_list
from pyfast_nas.testing import TOLERANCE, arrange, relative_error

# Odd sizes, no dimension, no element, more than a block of the CPU and than a tile of a GPU.
SMALL = ((3,), (2, 5), (0,), (), (4, 3, 3, 3), (7, 1, 3), (2, 0, 3), (16, 2, 4, 5))
SHAPES = (*SMALL, (1025,), (9001,))
STORAGE = ("apart", "flat", "side by side", "written flat", "read flat", "misaligned")


@dataclasses.dataclass(frozen=True)
class Operation:
    """A function of ``count`` lists of which the first ``written`` are written to.

    Attributes:
        call: Takes the lists and a scalar; returns a tensor that it makes, or None.
        fills: Whether the first list is only written to.
    """

    name: str
    count: int
    written: int
    call: Callable[..., Tensor | None]
    fills: bool = False

    def __str__(self) -> str:
        return self.name

    def run(self, lists: Sequence[Sequence[Tensor]], scalar: float | Tensor = 0.37) -> list[Tensor]:
        """Return what was written and what was made."""
        with torch.no_grad():
            made = self.call(*lists, scalar)
        results = [x for tensors in lists[: self.written] for x in tensors]
        return results if made is None else [*results, made]


def _cg(zs, rs, ps, hs, _scalar) -> Tensor:
    state = tensor_list.cg_start(rs)
    for _ in range(2):
        tensor_list.cg_step_(zs, rs, ps, hs, state)
    return state


OPERATIONS = (
    Operation("axpy_", 2, 1, lambda ys, xs, a: tensor_list.axpy_(ys, a, xs)),
    Operation("scale_", 1, 1, lambda xs, a: tensor_list.scale_(xs, a)),
    Operation("dot", 2, 0, lambda xs, ys, a: tensor_list.dot(xs, ys)),
    Operation("norm", 1, 0, lambda xs, a: tensor_list.norm(xs)),
    Operation("step", 1, 0, lambda xs, a: tensor_list.central_difference_step(xs, 0.01)),
    Operation(
        "perturb",
        3,
        1,
        lambda out, ws, vs, a: tensor_list.perturb(ws, a, vs, c=-1.5, out=out) and None,
        fills=True,
    ),
    Operation(
        "difference",
        3,
        1,
        lambda out, xs, ys, a: tensor_list.difference(xs, ys, a, out=out) and None,
        fills=True,
    ),
    Operation("neumann_step_", 3, 2, tensor_list.neumann_step_),
    Operation("cg_step_", 4, 3, _cg),
)


def make(count: int, dtype: torch.dtype = torch.float32, shapes=SHAPES, seed: int = 0):
    """Return ``count`` lists of random tensors; the last two have a positive inner product."""
    generator = torch.Generator().manual_seed(seed)
    lists = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(count)]
    lists[-1] = [2 * x + 0.1 * y for x, y in zip(lists[max(count - 2, 0)], lists[-1], strict=True)]
    return [[x.to(dtype) for x in tensors] for tensors in lists]


def flat(tensors: Sequence[Tensor]) -> tensor_list.FlatList:
    """Copy into flat storage; what lies between the tensors is NaN."""
    copies = tensor_list.flat_like(tensors)
    copies.buffer.fill_(float("nan"))
    for copy, x in zip(copies, tensors, strict=True):
        copy.copy_(x)
    return copies


def stored(lists, storage: str, operation: Operation):
    """Copy lists into memory as ``storage`` says; what is only written to begins as NaN."""
    found = []
    for place, tensors in enumerate(lists):
        if place == 0 and operation.fills:
            tensors = [torch.full_like(x, float("nan")) for x in tensors]
        is_written = place < operation.written
        if storage == "flat" or storage == ("written flat" if is_written else "read flat"):
            found.append(flat(tensors))
        elif storage == "side by side":
            found.append(list(flat(tensors)))
        elif storage == "misaligned":
            found.append([arrange(x, f"offset_{1 + place % 2}") for x in tensors])
        else:
            found.append([x.clone() for x in tensors])
    return found


def truth(operation: Operation, lists, scalar: float = 0.37) -> list[Tensor]:
    """Return what the reference makes of the same values in float64."""
    wide = [[x.detach().cpu().double().clone() for x in tensors] for tensors in lists]
    with _ext.use("reference"):
        return operation.run(wide, scalar)


def whole(results: Sequence[Tensor]) -> Tensor:
    """All values in one vector, in float64 on the CPU."""
    return torch.cat([x.detach().cpu().double().reshape(-1) for x in results])


def check_against_float64(
    operation: Operation,
    dtype: torch.dtype,
    storage: str = "apart",
    device: str = "cpu",
    scalar: float | Tensor = 0.37,
    shapes=SHAPES,
) -> None:
    """Compare one run with the truth, each list apart from the others."""
    lists = make(operation.count, dtype, shapes)
    want = truth(operation, lists, float(scalar))
    moved = [[x.to(device) for x in tensors] for tensors in lists]
    got = operation.run(stored(moved, storage, operation), scalar)
    for first in range(0, len(got), len(shapes)):
        last = first + len(shapes)
        error = relative_error(whole(got[first:last]), whole(want[first:last]))
        assert error <= TOLERANCE[dtype], (operation.name, dtype, storage, first, error)
