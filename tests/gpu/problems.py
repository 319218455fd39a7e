"""Small problems, one an operator and a way to call it: inputs, the call, gradients of all."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.ops.node_plan import params_of
from tests.ops import gumbel_cases, norm_cases, sum_cases
from tests.ops.node_cases import DIL3, FULL, REDUCE, SEP3, NodeCase, cast, with_params

Function = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function of tensors; gradients are taken of the first ``leaves`` of them.

    Attributes:
        make: Takes a seed, gives the tensors on the CPU in float64.
        function: Takes the tensors, gives what backward starts from and what else there is.
    """

    name: str
    make: Callable[[int], list[Tensor]]
    function: Callable[..., Sequence[Tensor]]
    leaves: int

    def __str__(self) -> str:
        return self.name

    def inputs(self, device: str, dtype: torch.dtype = torch.float32, seed: int = 0):
        """Return the tensors as leaves on ``device``; integers keep their dtype."""
        tensors = []
        for place, tensor in enumerate(self.make(seed)):
            tensor = tensor.to(device, dtype if tensor.is_floating_point() else None)
            tensors.append(tensor.requires_grad_(place < self.leaves))
        return tensors

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the results and the gradients of a fixed loss."""
        y, *others = self.function(*tensors)
        slope = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
        gradients = torch.autograd.grad(y, tensors[: self.leaves], slope, materialize_grads=True)
        return [y.detach(), *(other.detach() for other in others), *gradients]

    def outcome(self, *tensors: Tensor) -> Tensor:
        """Return what backward starts from: a function for gradcheck."""
        return self.function(*tensors)[0]


def _sum(name: str, shape: tuple[int, ...], count: int) -> Problem:
    def make(seed: int) -> list[Tensor]:
        xs, weights, _ = sum_cases.make(shape, count, (torch.float64,) * 2, seed)
        return [weights, *xs]

    return Problem(name, make, lambda weights, *xs: [ops.mixed_sum(xs, weights)], count + 1)


def _norm_sum(name: str, shape: tuple[int, ...]) -> Problem:
    def case(seed: int = 0) -> norm_cases.Case:
        return norm_cases.Case(shape, 5, (torch.float64,) * 2, seed=seed)

    def given() -> list[Tensor]:
        return [t for norm in case().norms if norm for t in norm[2:4] if t is not None]

    def make(seed: int) -> list[Tensor]:
        return [*case(seed).leaves(), *given()]

    def call(weights: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        xs, rest = tensors[:5], iter(tensors[5:])
        affine = [norm and norm.gamma is not None and (next(rest), next(rest)) for norm in norms]
        norms_here = []
        for norm, pair in zip(norms, affine, strict=True):
            if norm is not None and pair:
                norm = norm._replace(gamma=pair[0], beta=pair[1])
            if norm is not None and norm.mean is not None:
                norm = norm._replace(mean=next(rest), var=next(rest))
            norms_here.append(norm)
        return ops.norm_mixed_sum(xs, weights, norms_here)

    norms = case().norms
    return Problem(name, make, call, len(case().leaves()))


def _node(name: str, case: NodeCase, selects: bool = False) -> Problem:
    """With ``selects``, flags say which candidates run: others with another seed."""
    xs, _, pattern, _ = case.make(torch.float64)
    edges, params = len(xs), list(params_of(pattern))

    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        xs, weights, _, _ = case.make(torch.float64)
        shift = [0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in xs]
        tensors = [weights, *(x + s for x, s in zip(xs, shift, strict=True)), *params]
        flags = (torch.arange(len(weights)) + seed) % 2 == 0
        return [*tensors, flags] if selects else tensors

    def call(weights: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        *tensors, flags = tensors if selects else (*tensors, None)
        candidates = pattern
        if weights.dtype != torch.float64 or weights.device.type != "cpu":
            key = weights.dtype, weights.device
            if key not in there:
                there[key] = cast(cast(pattern, weights.dtype), weights.device)
            candidates = there[key]
        candidates = with_params(candidates, tensors[edges:])
        return ops.fused_node(tensors[:edges], weights, candidates, case.strides, flags)

    there: dict = {}  # given statistics: they move once, not in every call
    return Problem(name, make, call, 1 + edges + len(params))


def _sample(name: str, rows: int, columns: int, k: int, relaxation: str) -> Problem:
    def make(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return [logits, gumbel_cases.SEED + torch.tensor([0, seed])]

    def call(logits: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        return ops.gumbel_topk(logits, k, tau=0.7, seed=seed, relaxation=relaxation)

    return Problem(name, make, call, 1)


# Small enough for numerical derivatives; the maxima of pools are apart.
SMALL = (
    _sum("mixed_sum", (2, 3), 3),
    _norm_sum("norm_mixed_sum", (3, 2, 2)),
    _node("fused_node", NodeCase((2, 2, 4, 4), (1,), "a", (SEP3, DIL3))),
    _node("fused_node_strided", NodeCase((2, 2, 4, 4), (2,), "", (DIL3, REDUCE))),
    _node("fused_node_given", NodeCase((2, 2, 4, 4), (1,), "ag", (SEP3,))),
    _node("fused_node_full", NodeCase((2, 2, 4, 4), (1,), "a", (FULL[0],))),
    _node("fused_node_selected", NodeCase((2, 2, 4, 4), (1,), "a", (SEP3, DIL3)), selects=True),
    _sample("gumbel_topk", 3, 5, 2, "shared"),
    _sample("gumbel_topk_conditional", 3, 5, 2, "conditional"),
    _sample("gumbel_topk_subset", 3, 5, 2, "subset"),
)
# More than one block of threads.
LARGE = (
    _sum("mixed_sum", (3, 16, 17, 16), 9),
    _norm_sum("norm_mixed_sum", (6, 16, 9, 8)),
    _node("fused_node", NodeCase((4, 16, 9, 8), (1, 1))),
    _node("fused_node_strided", NodeCase((4, 16, 8, 8), (2,), "a", (SEP3, REDUCE))),
    _node("fused_node_selected", NodeCase((4, 16, 9, 8), (1, 1), "a"), selects=True),
    _sample("gumbel_topk", 300, 33, 3, "shared"),
    _sample("gumbel_topk_conditional", 40, 300, 5, "conditional"),
    _sample("gumbel_topk_subset", 40, 300, 5, "subset"),
)
