"""Shapes and providers of the operator benchmarks: data times ways to compute the same thing."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyfast_nas import ops

__all__ = ["MIXED_SUM_CASES", "MixedSumCase", "mixed_sum_providers"]


@dataclasses.dataclass(frozen=True)
class MixedSumCase:
    """One edge: ``num_ops`` candidates of ``shape``."""

    shape: tuple[int, ...]
    num_ops: int = 8
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        size = "x".join(map(str, self.shape))
        return f"{self.num_ops} x [{size}]" + (" channels-last" if self.channels_last else "")

    def make(self, device: str) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return random candidates, weights and a gradient of the sum."""
        generator = torch.Generator(device).manual_seed(0)

        def draw(shape: Sequence[int]) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=self.dtype)

        tensors = [draw(self.shape) for _ in range(self.num_ops + 1)]
        if self.channels_last:
            tensors = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
        weights = draw((self.num_ops,)).softmax(0).requires_grad_()
        return [t.requires_grad_() for t in tensors[1:]], weights, tensors[0]

    def bytes_moved(self, mode: str) -> int:
        """Bytes that the ideal kernel reads and writes."""
        tensors = {"forward": self.num_ops + 1, "backward": 2 * self.num_ops + 1}
        tensors["both"] = tensors["forward"] + tensors["backward"]
        elements = torch.Size(self.shape).numel()
        return tensors[mode] * elements * self.dtype.itemsize


MIXED_SUM_CASES = (
    MixedSumCase((64, 16, 32, 32)),
    MixedSumCase((64, 16, 32, 32), channels_last=True),
    MixedSumCase((64, 32, 16, 16)),
    MixedSumCase((64, 64, 8, 8)),
    MixedSumCase((2, 4, 8, 8)),
)

MixedSum = Callable[[Sequence[Tensor], Tensor], Tensor]


def _loop(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    return sum(weights[k] * x for k, x in enumerate(xs))


def _addcmul(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    y = weights[0] * xs[0]
    for k in range(1, len(xs)):
        y = torch.addcmul(y, weights[k], xs[k])
    return y


def _stack_einsum(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    return torch.einsum("k,k...->...", weights, torch.stack(tuple(xs)))


def mixed_sum_providers() -> Mapping[str, MixedSum]:
    """Return our operator and its strongest plain rivals; ``compiled`` starts afresh."""
    torch._dynamo.reset()
    return {
        "loop": _loop,
        "addcmul": _addcmul,
        "stack_einsum": _stack_einsum,
        "compiled": torch.compile(_loop, dynamic=False),
        "fused": ops.mixed_sum,
    }
