"""Nodes whose products round their factors to TF32, by plain operations in float64."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from pyfast_nas.ops import reference_edges
from pyfast_nas.testing import full_float32
from tests.ops.node_cases import CASES, NodeCase, cast, run, with_gradients

# One channel alone would be a depthwise convolution to the model.
MODELLED = [case for case in CASES if case.shape[1] > 1][::2]


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Let convolutions round float32 to TF32 inside the block."""
    with full_float32():
        torch.backends.cudnn.allow_tf32 = True
        yield


def rounded(t: Tensor) -> Tensor:
    """Round float32 to TF32: to nearest, ties away from zero."""
    bits = t.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(t.dtype)


class _Rounded(torch.autograd.Function):
    """A convolution whose factors are rounded to TF32, in backward too."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, settings: dict) -> Tensor:
        x, kernel = rounded(x), rounded(kernel)
        ctx.save_for_backward(x, kernel)
        ctx.settings = settings
        return F.conv2d(x, kernel, **settings)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, kernel = ctx.saved_tensors
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (x, kernel)]
            y = F.conv2d(*leaves, **ctx.settings)
        return *torch.autograd.grad(y, leaves, rounded(grad)), None


class _Functions:
    """Stands for ``torch.nn.functional``: every convolution but a depthwise one rounds."""

    def __getattr__(self, name: str):
        return getattr(F, name)

    @staticmethod
    def conv2d(x: Tensor, kernel: Tensor, **settings) -> Tensor:
        if settings.get("groups", 1) > 1:
            return F.conv2d(x, kernel, **settings)
        return _Rounded.apply(x, kernel, settings)


def model(case: NodeCase) -> list[Tensor]:
    """Return the results in float64 with rounding where a tensor core needs it."""
    xs, weights, candidates, gradient = case.make(torch.float32)
    wide = [x.double() for x in xs], weights.double(), cast(candidates, torch.float64)
    with mock.patch.object(reference_edges, "F", _Functions()):
        return with_gradients(reference_edges.fused_node, *wide, gradient.double(), case.strides)


def check_tf32(case: NodeCase, device: str = "cpu") -> None:
    """Hold a node on tensor cores nearer to the model than to float32.

    What float32 rounds differently may cross a boundary of TF32 here and there.
    """
    with tf32():
        got = run(case, device=device)
    with full_float32():
        plain = run(case, device=device)
    assert not torch.equal(got[0], plain[0])
    for one, want, exact in zip(got, model(case), plain, strict=True):
        # Gradients through a batch norm of two values vanish but for rounding.
        scale = want.square().mean().sqrt().clamp_min(1e-2)
        error, distance = ((t.double() - want).square().mean().sqrt() for t in (one, exact))
        assert error <= 0.5 * distance + 2e-6 * scale
