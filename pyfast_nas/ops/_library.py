"""Every schema, fake kernel and autograd formula; the only user of torch.library.

A kernel registered from C++ for CPU or CUDA takes precedence over the reference given here as
``CompositeExplicitAutograd``, by the dispatcher's own order of keys.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyfast_nas.ops import reference
from pyfast_nas.ops._checks import check_mixed_sum

__all__ = ["LIB", "call_mixed_sum", "call_mixed_sum_backward", "register_autograd"]

LIB = torch.library.Library("pyfast_nas", "DEF")
LIB.define("mixed_sum(Tensor[] xs, Tensor weights) -> Tensor")
LIB.define(
    "mixed_sum_backward(Tensor grad, Tensor[] xs, Tensor weights, int[] wanted, bool wants_weights)"
    " -> (Tensor[], Tensor)"
)


def register_autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Give the operator ``name`` its derivative where it is called as ``torch.ops.pyfast_nas``."""
    torch.library.register_autograd(
        f"pyfast_nas::{name}", backward, setup_context=setup_context, lib=LIB
    )


def call_mixed_sum(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Run the kernel without the autograd layer, which alone costs ten microseconds."""
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.pyfast_nas.mixed_sum.default(xs, weights)


def call_mixed_sum_backward(
    grad: Tensor, xs: Sequence[Tensor], weights: Tensor, wanted: Sequence[int], wants_weights: bool
) -> tuple[list[Tensor], Tensor]:
    """Run the backward kernel without the autograd layer."""
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.pyfast_nas.mixed_sum_backward.default(
            grad, xs, weights, wanted, wants_weights
        )


@torch.library.register_fake("pyfast_nas::mixed_sum", lib=LIB)
def _(xs, weights):
    check_mixed_sum(xs, weights)
    return torch.empty_like(xs[0], dtype=torch.promote_types(xs[0].dtype, weights.dtype))


@torch.library.register_fake("pyfast_nas::mixed_sum_backward", lib=LIB)
def _(grad, xs, weights, wanted, wants_weights):
    grad_xs = [torch.empty_like(xs[0]) for _ in wanted]
    return grad_xs, weights.new_empty(len(xs) if wants_weights else 0)


def _mixed_sum_default(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    return _laid_out_like(xs[0], reference.mixed_sum(xs, weights))


def _mixed_sum_backward_default(
    grad: Tensor, xs: Sequence[Tensor], weights: Tensor, wanted: Sequence[int], wants_weights: bool
) -> tuple[list[Tensor], Tensor]:
    grad_xs, grad_weights = reference.mixed_sum_backward(grad, xs, weights, wanted, wants_weights)
    return [_laid_out_like(xs[0], grad_x) for grad_x in grad_xs], grad_weights


def _laid_out_like(x: Tensor, y: Tensor) -> Tensor:
    """Copy ``y`` into the memory format that the fake kernels promise, unless it has it."""
    wanted = torch.empty_like(x, dtype=y.dtype)
    return y if y.stride() == wanted.stride() else wanted.copy_(y)


LIB.impl("mixed_sum", _mixed_sum_default, "CompositeExplicitAutograd")
LIB.impl("mixed_sum_backward", _mixed_sum_backward_default, "CompositeExplicitAutograd")
# Plain torch operations know how to batch themselves; torch.autograd.grad(is_grads_batched=True)
# batches by the older of the two keys.
for _key in ("Batched", "FuncTorchBatched"):
    LIB.impl("mixed_sum", reference.mixed_sum, _key)
    LIB.impl("mixed_sum_backward", reference.mixed_sum_backward, _key)
