"""Cases of ``ops.tensor_list``: what hypergradients do to vectors of a supernet's parameters."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from pyfast_nas.bench.operators import compiled
from pyfast_nas.bench.timing import cache_bytes
from pyfast_nas.bench.workload import check
from pyfast_nas.ops import tensor_list
from pyfast_nas.spaces import DARTS

__all__ = ["TENSOR_LIST_CASES", "CentralDifferenceCase", "NeumannCase", "Update"]

Vector = Sequence[Tensor]
Step = Callable[..., Sequence[Vector]]  # takes vectors, returns those that it wrote
GAMMA, RADIUS = 1e-3, 0.01


class Update:
    """A step on several sets of vectors in turn, so that none waits in the cache of a GPU."""

    def __init__(self, step: Step, sets: Sequence[Sequence[Vector]]) -> None:
        self._step, self._sets = step, sets

    def call(self, mode: str) -> Callable[[], object]:
        """Return the step, on another set each time; there is one mode."""
        calls = itertools.cycle([functools.partial(self._step, *vectors) for vectors in self._sets])
        return torch.no_grad()(lambda: next(calls)())

    def results(self) -> list[Tensor]:
        """Return what one step leaves of copies of the first set."""
        copies = [_placed(vector, _is_flat(vector)) for vector in self._sets[0]]
        with torch.no_grad():
            return [torch.cat([x.reshape(-1) for x in vector]) for vector in self._step(*copies)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeumannCase:
    """u -= gamma h, p += u on all weights of a DARTS supernet.

    Attributes:
        storage: ``"apart"``, every tensor by itself; ``"mixed"``, h by itself and the others flat;
            ``"flat"``.
        cells: Cells of the supernet.
    """

    operator: ClassVar[str] = "tensor_list"
    modes: ClassVar[tuple[str, ...]] = ("step",)
    what: ClassVar[str] = "Neumann update"
    vectors: ClassVar[int] = 3
    gradients: ClassVar[tuple[int, ...]] = (2,)  # of the vectors, those that autograd makes
    passes: ClassVar[int] = 5  # reads and writes of a vector in the ideal step

    storage: str
    cells: int = 8

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        where = {"apart": "", "mixed": ", gradients apart", "flat": " in flat storage"}
        return f"{self.what}, {self.sizes[0]:,} tensors{where[self.storage]}"

    @property
    def sizes(self) -> list[int]:
        """Tensors, and numbers in all of them."""
        return [len(_shapes(self.cells)), sum(shape.numel() for shape in _shapes(self.cells))]

    def bytes_moved(self, mode: str) -> int:
        """Bytes that the ideal kernel reads and writes."""
        return 4 * self.passes * self.sizes[1]

    def steps(self) -> dict[str, Step]:
        """Return the ways to take the step."""
        steps = {"loop": _neumann_loop, "foreach": _neumann_foreach}
        steps["foreach_sub"] = _neumann_foreach_sub
        if self.storage == "flat":
            steps |= {"buffers": _neumann_buffers, "compiled_buffers": _neumann_compiled()}
        return steps | {"fused": _neumann_ours}

    def workloads(self, device: str) -> Mapping[str, Update]:
        """Return every provider, each checked."""
        steps = self.steps()
        sets = [
            self._draw(device, seed)
            for seed in range(min(8, 1 + 2 * cache_bytes(device) // self.bytes_moved("step")))
        ]
        made = {name: Update(step, sets) for name, step in steps.items()}
        wide = [[x.double() for x in vector] for vector in sets[0]]
        truth = Update(steps["loop"], [wide]).results()
        results = {name: update.results() for name, update in made.items()}
        check(results, truth, "loop", f"{self.operator}: {self.name}")
        return made

    def _draw(self, device: str, seed: int) -> list[Vector]:
        generator = torch.Generator(device).manual_seed(seed)
        vectors = [
            [
                torch.randn(shape, generator=generator, device=device)
                for shape in _shapes(self.cells)
            ]
            for _ in range(self.vectors)
        ]
        apart = {"apart": range(self.vectors), "mixed": self.gradients, "flat": ()}[self.storage]
        return [_placed(vector, place not in apart) for place, vector in enumerate(vectors)]


@functools.cache
def _shapes(cells: int) -> tuple[torch.Size, ...]:
    net = DARTS(channels=16, cells=cells, num_classes=10).supernet()
    return tuple(weight.shape for weight in net.weight_parameters())


def _is_flat(vector: Vector) -> bool:
    return isinstance(vector, tensor_list.FlatList)


def _placed(vector: Vector, is_flat: bool) -> Vector:
    """Copy a vector into flat storage, or each tensor by itself."""
    copies = tensor_list.flat_like(vector) if is_flat else [torch.empty_like(x) for x in vector]
    torch._foreach_copy_(copies, list(vector))
    return copies


def _neumann_loop(ps: Vector, us: Vector, hs: Vector) -> Sequence[Vector]:
    for p, u, h in zip(ps, us, hs, strict=True):
        u.sub_(h, alpha=GAMMA)
        p.add_(u)
    return ps, us


def _neumann_foreach(ps: Vector, us: Vector, hs: Vector) -> Sequence[Vector]:
    torch._foreach_add_(us, hs, alpha=-GAMMA)
    torch._foreach_add_(ps, us)
    return ps, us


def _neumann_foreach_sub(ps: Vector, us: Vector, hs: Vector) -> Sequence[Vector]:
    torch._foreach_sub_(us, hs, alpha=GAMMA)
    torch._foreach_add_(ps, us)
    return ps, us


def _neumann_buffers(ps: Vector, us: Vector, hs: Vector) -> Sequence[Vector]:
    us.buffer.sub_(hs.buffer, alpha=GAMMA)
    ps.buffer.add_(us.buffer)
    return ps, us


def _neumann_compiled() -> Step:
    def update(p: Tensor, u: Tensor, h: Tensor) -> None:
        u.sub_(h, alpha=GAMMA)
        p.add_(u)

    whole = compiled(update)

    def step(ps: Vector, us: Vector, hs: Vector) -> Sequence[Vector]:
        whole(ps.buffer, us.buffer, hs.buffer)
        return ps, us

    return step


def _neumann_ours(ps: Vector, us: Vector, hs: Vector) -> Sequence[Vector]:
    tensor_list.neumann_step_(ps, us, hs, GAMMA)
    return ps, us


def _step_length(vs: Vector) -> Tensor:
    return RADIUS / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(vs)))


def _difference_loop(*vectors: Vector) -> Sequence[Vector]:
    ws, vs, above, below, plus, minus, out = vectors
    eps = RADIUS / torch.linalg.vector_norm(torch.stack([v.norm() for v in vs]))
    for k, (w, v) in enumerate(zip(ws, vs, strict=True)):
        torch.addcmul(w, v, eps, out=plus[k])
        torch.addcmul(w, v, eps, value=-1, out=minus[k])
        torch.sub(above[k], below[k], out=out[k]).div_(2 * eps)
    return plus, minus, out


def _difference_foreach(*vectors: Vector) -> Sequence[Vector]:
    ws, vs, above, below, *_ = vectors
    eps = _step_length(vs)
    moves = torch._foreach_mul(vs, eps)
    plus, minus = torch._foreach_add(ws, moves), torch._foreach_sub(ws, moves)
    out = torch._foreach_sub(above, below)
    torch._foreach_div_(out, 2 * eps)
    return plus, minus, out


def _difference_foreach_in_place(*vectors: Vector) -> Sequence[Vector]:
    """Reads the length on the host: on a GPU that waits."""
    ws, vs, above, below, plus, minus, out = vectors
    eps = float(_step_length(vs))
    for moved, sign in ((plus, 1), (minus, -1)):
        torch._foreach_copy_(moved, ws)
        torch._foreach_add_(moved, vs, alpha=sign * eps)
    torch._foreach_copy_(out, above)
    torch._foreach_sub_(out, below)
    torch._foreach_div_(out, 2 * eps)
    return plus, minus, out


def _difference_buffers(*vectors: Vector) -> Sequence[Vector]:
    ws, vs, above, below, plus, minus, out = (vector.buffer for vector in vectors)
    # In float32 the norm of so long a vector is wrong by more than the check allows.
    eps = (RADIUS / torch.linalg.vector_norm(vs, dtype=torch.float64)).float()
    torch.addcmul(ws, vs, eps, out=plus)
    torch.addcmul(ws, vs, eps, value=-1, out=minus)
    torch.sub(above, below, out=out).div_(2 * eps)
    return vectors[4:]


def _difference_ours(*vectors: Vector) -> Sequence[Vector]:
    ws, vs, above, below, plus, minus, out = vectors
    eps = tensor_list.central_difference_step(vs, RADIUS)
    tensor_list.perturb(ws, eps, vs, out=plus)
    tensor_list.perturb(ws, eps, vs, c=-1.0, out=minus)
    tensor_list.difference(above, below, eps, out=out)
    return plus, minus, out


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentralDifferenceCase(NeumannCase):
    """w + eps v, w - eps v and (g - g') / 2 eps with eps = radius / |v|."""

    what: ClassVar[str] = "central difference"
    vectors: ClassVar[int] = 7  # w, v, g, g' and three that are written
    gradients: ClassVar[tuple[int, ...]] = (2, 3)
    passes: ClassVar[int] = 10

    def steps(self) -> dict[str, Step]:
        """Return the ways to take the step."""
        steps = {"loop": _difference_loop, "foreach": _difference_foreach}
        steps["foreach_in_place"] = _difference_foreach_in_place
        if self.storage == "flat":
            steps["buffers"] = _difference_buffers
        return steps | {"fused": _difference_ours}


TENSOR_LIST_CASES = tuple(
    case(storage=storage)
    for case in (NeumannCase, CentralDifferenceCase)
    for storage in ("apart", "mixed", "flat")
)
