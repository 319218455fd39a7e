"""Weights of the relaxed subset as an operator on the sampler's keys, and the whole relaxed k-hot.

:func:`pyfast_nas.ops.gumbel_topk` draws the keys; this file weighs what it picked.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyfast_nas import _ext
from pyfast_nas.ops import _library, reference_subset

__all__ = ["subset_weights"]

_library.LIB.define("subset_weights(Tensor keys, Tensor indices, float tau) -> Tensor")
_library.LIB.define(
    "subset_weights_backward(Tensor grad_weights, Tensor keys, Tensor indices, float tau) -> Tensor"
)
_subset_weights = torch.ops.pyfast_nas.subset_weights.default
_subset_weights_backward = torch.ops.pyfast_nas.subset_weights_backward.default


def subset_weights(keys: Tensor, indices: Tensor, tau: float) -> Tensor:
    """Return for each rank its relaxed weight at the candidate that was picked there.

    Args:
        keys: Logits plus Gumbel noise, float64 or float32, ``[rows, columns]``.
        indices: Columns of the k largest keys, best first, int64 ``[rows, k]``.
        tau: Temperature, greater than zero.
    """
    if not _ext.compiled_for(keys.device):
        return reference_subset.subset_weights(keys, indices, tau)
    if torch.compiler.is_compiling():
        return _subset_weights(keys, indices, tau)
    return _SubsetWeights.apply(keys, indices, tau)


class _SubsetWeights(_library.DirectFunction):
    """(keys, indices, tau) -> weights."""

    @staticmethod
    def forward(keys, indices, tau):
        with torch._C._AutoDispatchBelowAutograd():
            return _subset_weights(keys, indices, tau)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        keys, indices, ctx.tau = inputs
        ctx.save_for_backward(keys, indices)
        ctx.save_for_forward(keys, indices)

    @staticmethod
    def backward(ctx, grad_weights):
        keys, indices = ctx.saved_tensors
        return _backward(grad_weights, keys, indices, ctx.tau), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        keys, indices = ctx.saved_tensors
        return reference_subset.subset_weights_tangent(tangent, keys, indices, ctx.tau)

    @staticmethod
    def vmap(info, in_dims, keys, indices, tau):
        batch = info.batch_size
        keys, indices = (
            t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((keys, indices), in_dims, strict=False)
        )
        weights = _SubsetWeights.apply(keys.flatten(0, 1), indices.flatten(0, 1), tau)
        return weights.unflatten(0, (batch, -1)), 0


def _backward(grad_weights: Tensor, keys: Tensor, indices: Tensor, tau: float) -> Tensor:
    """Gradient of the keys: by the kernel, unless it is to be differentiated again."""
    if (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
    ):
        return reference_subset.subset_weights_backward(grad_weights, keys, indices, tau)
    with torch._C._AutoDispatchBelowAutograd():
        return _subset_weights_backward(grad_weights, keys, indices, tau)


@torch.library.register_fake("pyfast_nas::subset_weights", lib=_library.LIB)
def _(keys, indices, tau):
    return keys.new_empty(indices.shape)


@torch.library.register_fake("pyfast_nas::subset_weights_backward", lib=_library.LIB)
def _(grad_weights, keys, indices, tau):
    return keys.new_empty(keys.shape)


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.tau = inputs
    ctx.save_for_backward(*tensors)


def _vjp(ctx, grad_weights):
    return _subset_weights_backward(grad_weights, *ctx.saved_tensors, ctx.tau), None, None


def _backward_vjp(ctx, cotangent):
    by_grad_weights, by_keys = reference_subset.subset_weights_double_backward(
        cotangent, *ctx.saved_tensors, ctx.tau
    )
    return by_grad_weights, by_keys, None, None


_library.register_autograd("subset_weights", _vjp, _setup)
_library.register_autograd("subset_weights_backward", _backward_vjp, _setup)
for _name in ("subset_weights", "subset_weights_backward"):
    for _key in ("CompositeExplicitAutograd", "Batched", "FuncTorchBatched"):
        _library.LIB.impl(_name, getattr(reference_subset, _name), _key)
