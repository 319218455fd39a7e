"""What fused nodes have to compute and to move, counted from their candidates.

Counted is what the mathematics asks for, not what a kernel does: where it computes something once
more than it must, that work counts for nothing and shows as a lower speed.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyfast_nas.ops import Candidate
from pyfast_nas.ops.node_plan import Plan, params_of

__all__ = ["Work", "backward_work", "forward_work", "nodes_of"]


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations, those of depthwise windows among them, and bytes of traffic.

    Example:
        >>> Work(flops=3, depthwise=1, bytes=8) + Work(flops=4, bytes=8)
        Work(flops=7, depthwise=1, bytes=16)
    """

    flops: int = 0
    depthwise: int = 0
    bytes: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops, self.depthwise + other.depthwise, self.bytes + other.bytes
        )


def forward_work(
    xs: Sequence[Tensor], candidates: Sequence[Candidate], strides: Sequence[int]
) -> Work:
    """Count what forward of one fused node needs; only shapes and dtypes are looked at.

    A multiply-add is two operations. A window takes one for each of its taps, a product one for
    each entry of its matrix, both at every pixel that comes out; full convolutions are products
    with a matrix ``[C_out, C_in, k, k]``. What falls on the padding counts like the rest. ReLUs,
    batch norms, pools and the sum are left out: a few operations a value, where windows and
    products take from nine to hundreds.

    Every input, every parameter and the outcome pass through memory once.

    Example:
        >>> from pyfast_nas.ops import Norm, Stage
        >>> matrix, x = torch.ones(5, 3, 1, 1), torch.ones(2, 3, 4, 4)
        >>> work = forward_work([x], [Candidate("conv", 0, (Stage(None, matrix, Norm()),))], [1])
        >>> work.flops == 2 * (5 * 3) * (2 * 4 * 4)
        True
        >>> work.bytes == 4 * (2 * 3 * 4 * 4 + 5 * 3 + 2 * 5 * 4 * 4)
        True
    """
    samples, height, width = _image(xs[0], strides[0])
    stages = [stage for candidate in candidates for stage in candidate.stages]
    taps = sum(stage.taps.numel() for stage in stages if stage.taps is not None)
    matrices = sum(
        matrix.numel()
        for stage in stages
        for matrix in (stage.matrix, stage.shifted)
        if matrix is not None
    )
    each = 2 * samples * height * width
    return Work(
        flops=each * (taps + matrices),
        depthwise=each * taps,
        bytes=sum(_sizes(xs, candidates, strides)),
    )


def backward_work(
    xs: Sequence[Tensor], candidates: Sequence[Candidate], strides: Sequence[int]
) -> Work:
    """Count what backward of one fused node needs for the gradients of all that goes in.

    Windows and products three times: once more as in forward, since nothing of them is kept; turned
    and transposed for the gradients of what they read; and once for those of taps and matrices.

    The gradient of the outcome, every input, every parameter and the gradient of each pass through
    memory once.

    Example:
        >>> from pyfast_nas.ops import Norm, Stage
        >>> matrix, x = torch.ones(5, 3, 1, 1), torch.ones(2, 3, 4, 4)
        >>> node = [x], [Candidate("conv", 0, (Stage(None, matrix, Norm()),))], [1]
        >>> backward_work(*node).flops == 3 * forward_work(*node).flops
        True
    """
    again = forward_work(xs, candidates, strides)
    read, outcome = _sizes(xs, candidates, strides)
    return Work(flops=3 * again.flops, depthwise=3 * again.depthwise, bytes=2 * read + outcome)


def nodes_of(call: Callable[[], object]) -> tuple[Work, Work]:
    """Count what all fused nodes that ``call`` runs need, forward and backward.

    Nodes that plain operations compute, where no kernel serves, are none.
    """
    with _Nodes() as nodes:
        call()
    return nodes.forward, nodes.backward


# Operators of forward, and how many of their arguments stand before the inputs.
_NODES = {
    torch.ops.pyfast_nas.fused_node.default: 0,
    torch.ops.pyfast_nas.fused_node_into.default: 1,
}


class _Nodes(TorchDispatchMode):
    """Sees every operator with its arguments; the operators run as they would."""

    forward = backward = Work()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _NODES:
            xs, _, params, given, *numbers = args[_NODES[func] :][:7]
            plan = Plan(*map(tuple, numbers))
            node = xs, plan.rebuild(params, given), plan.strides
            self.forward += forward_work(*node)
            self.backward += backward_work(*node)
        return func(*args, **(kwargs or {}))


def _sizes(
    xs: Sequence[Tensor], candidates: Sequence[Candidate], strides: Sequence[int]
) -> tuple[int, int]:
    """Bytes of what a node reads, inputs and parameters, and of its outcome."""
    first = candidates[0]
    x = xs[first.edge]
    channels = first.stages[-1].out_channels if first.stages else x.shape[1]
    outcome = channels * math.prod(_image(x, strides[first.edge])) * x.dtype.itemsize
    return sum(t.numel() * t.dtype.itemsize for t in (*xs, *params_of(candidates))), outcome


def _image(x: Tensor, stride: int) -> tuple[int, int, int]:
    """Samples, rows and columns of what a node makes of ``x``; the same for all its inputs."""
    samples, _, height, width = x.shape
    return samples, -(-height // stride), -(-width // stride)
