"""Cases of the single operators: data times ways to compute the same, ours and plain PyTorch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.bench.timing import cache_bytes
from pyfast_nas.bench.workload import Rotation, Workload, check

__all__ = ["MIXED_SUM_CASES", "NORM_MIXED_SUM_CASES", "MixedSumCase", "NormMixedSumCase",
           "OperatorCase"]  # fmt: skip

Sum = Callable[[Sequence[Tensor], Tensor], Tensor]


class OperatorCase(Protocol):
    """One operator at one size."""

    operator: ClassVar[str]
    modes: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str:
        """Label of tables and result rows."""

    @property
    def sizes(self) -> list[int]:
        """The sizes as numbers."""

    def bytes_moved(self, mode: str) -> int:
        """Bytes that the ideal kernel reads and writes."""

    def workloads(self, device: str) -> Mapping[str, Workload | Rotation]:
        """Return every provider, each checked; :class:`WrongResultError` if one is wrong."""


@dataclasses.dataclass(frozen=True)
class MixedSumCase:
    """One edge's weighted sum: ``num_ops`` candidates of ``shape``."""

    operator: ClassVar[str] = "mixed_sum"
    modes: ClassVar[tuple[str, ...]] = ("forward", "backward", "both")

    shape: tuple[int, ...]
    num_ops: int = 8
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        size = "x".join(map(str, self.shape))
        return f"{self.num_ops} x [{size}]" + (" channels-last" if self.channels_last else "")

    @property
    def sizes(self) -> list[int]:
        """Candidates, then the shape of each."""
        return [self.num_ops, *self.shape]

    def bytes_moved(self, mode: str) -> int:
        """Bytes that the ideal kernel reads and writes."""
        tensors = {"forward": self.num_ops + 1, "backward": 2 * self.num_ops + 1}
        tensors["both"] = tensors["forward"] + tensors["backward"]
        return tensors[mode] * torch.Size(self.shape).numel() * self.dtype.itemsize

    def make(self, device: str, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return random candidates, weights and a gradient of the sum."""
        generator = torch.Generator(device).manual_seed(seed)

        def draw(shape: Sequence[int]) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=self.dtype)

        tensors = [draw(self.shape) for _ in range(self.num_ops + 1)]
        if self.channels_last:
            tensors = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
        weights = draw((self.num_ops,)).softmax(0).requires_grad_()
        return [t.requires_grad_() for t in tensors[1:]], weights, tensors[0]

    def workloads(self, device: str) -> Mapping[str, Workload | Rotation]:
        """Return every provider, each checked."""
        return _checked(self, _sum_providers(_loop) | {"fused": ops.mixed_sum}, "loop", device)


@dataclasses.dataclass(frozen=True)
class NormMixedSumCase(MixedSumCase):
    """The same, where all candidates but the last two end in a batch norm."""

    operator: ClassVar[str] = "norm_mixed_sum"
    # A compiled backward pass gives its buffers away: it cannot be run twice from one graph.
    modes: ClassVar[tuple[str, ...]] = ("forward", "both")

    def bytes_moved(self, mode: str) -> int:
        """Bytes that the ideal kernel moves: statistics and their gradients read all once more."""
        return super().bytes_moved(mode) + (
            (1 if mode == "forward" else 2)
            * self.num_ops
            * torch.Size(self.shape).numel()
            * self.dtype.itemsize
        )

    def workloads(self, device: str) -> Mapping[str, Workload | Rotation]:
        """Return every provider, each checked; ours only where the package has it."""
        normed = self.num_ops - 2

        def unfolded(xs: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
            return [
                F.batch_norm(x, None, None, training=True) if k < normed else x
                for k, x in enumerate(xs)
            ]

        def loop(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
            return _loop(unfolded(xs, weights), weights)

        made: dict[str, Sum] = {
            "loop": loop,
            "mixed_sum": lambda xs, weights: ops.mixed_sum(unfolded(xs, weights), weights),
            "compiled": compiled(loop),
        }
        norms = [ops.Norm() if k < normed else None for k in range(self.num_ops)]
        if hasattr(ops, "norm_mixed_sum"):
            made["fused"] = lambda xs, weights: ops.norm_mixed_sum(xs, weights, norms)[0]
        return _checked(self, made, "loop", device)


MIXED_SUM_CASES = (
    MixedSumCase((64, 16, 32, 32)),
    MixedSumCase((64, 16, 32, 32), channels_last=True),
    MixedSumCase((64, 32, 16, 16)),
    MixedSumCase((64, 64, 8, 8)),
    MixedSumCase((2, 4, 8, 8)),
)
NORM_MIXED_SUM_CASES = (
    NormMixedSumCase((64, 16, 32, 32)),
    NormMixedSumCase((64, 16, 32, 32), channels_last=True),
    NormMixedSumCase((64, 64, 8, 8), channels_last=True),
)


def _loop(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    return sum(weights[k] * x for k, x in enumerate(xs))


def _addcmul(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    y = weights[0] * xs[0]
    for k in range(1, len(xs)):
        y = torch.addcmul(y, weights[k], xs[k])
    return y


def _stack_einsum(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    return torch.einsum("k,k...->...", weights, torch.stack(tuple(xs)))


def compiled(function: Callable) -> Callable:
    """Return the function compiled for the sizes it is called with, each case afresh."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def _sum_providers(loop: Sum) -> dict[str, Sum]:
    return {
        "loop": loop,
        "addcmul": _addcmul,
        "stack_einsum": _stack_einsum,
        "compiled": compiled(loop),
    }


def _checked(
    case: MixedSumCase, functions: Mapping[str, Sum], plain: str, device: str
) -> dict[str, Rotation]:
    # Twice what a GPU's cache holds; what is small costs the call, wherever its tensors are.
    sets = min(8, 1 + 2 * cache_bytes(device) // case.bytes_moved("forward"))
    tensors = [case.make(device, seed) for seed in range(sets)]
    xs, weights, gradient = tensors[0]
    made = {
        name: Rotation([_workload(function, *some) for some in tensors])
        for name, function in functions.items()
    }
    wide = [t.detach().double().requires_grad_() for t in (weights, *xs)]
    truth = _workload(functions[plain], wide[1:], wide[0], gradient.double()).results()
    results = {name: workload.results() for name, workload in made.items()}
    check(results, truth, plain, f"{case.operator} of {case.name}")
    return made


def _workload(function: Sum, xs: Sequence[Tensor], weights: Tensor, gradient: Tensor) -> Workload:
    plain, plain_weights = [x.detach() for x in xs], weights.detach()

    def forward() -> Tensor:
        with torch.no_grad():
            return function(plain, plain_weights)

    return Workload(
        forward=forward,
        run=lambda: function(xs, weights),
        leaves=[weights, *xs],
        gradient=gradient,
        parameters=[weights, *xs],
    )
