"""Derivatives of ``norm_mixed_sum``: by the kernel, by plain operations, and as an operator."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyfast_nas.ops import _library, reference_norm

__all__ = ["by_kernel", "by_reference", "split"]


def split(kinds: Sequence[int], tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Part ``xs`` from the parameters behind them."""
    return list(tensors[: len(kinds)]), list(tensors[len(kinds) :])


def by_kernel(
    call: Callable,
    grad: Tensor,
    tensors: Sequence[Tensor],
    statistics: Tensor,
    kinds: Sequence[int],
    eps: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of (weights, *xs, *params) that are needed, None for the others."""
    weights = tensors[0]
    xs, params = split(kinds, tensors[1:])
    wanted_xs = [k for k in range(len(xs)) if needs[1 + k]]
    wanted_params = [i for i in range(len(params)) if needs[1 + len(xs) + i]]
    grad_xs, grad_weights, grad_params = call(
        grad, xs, weights, params, statistics, kinds, eps, wanted_xs, needs[0], wanted_params
    )
    gradients: list[Tensor | None] = [None] * len(tensors)
    if needs[0]:
        gradients[0] = grad_weights
    for k, value in zip(wanted_xs, grad_xs, strict=True):
        gradients[1 + k] = value
    for i, value in zip(wanted_params, grad_params, strict=True):
        gradients[1 + len(xs) + i] = value
    return gradients


def by_reference(
    grad: Tensor,
    tensors: Sequence[Tensor],
    given: Sequence[Tensor],
    kinds: Sequence[int],
    eps: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients by plain operations, differentiable in turn."""
    with torch.enable_grad():
        # One input may be computed from another: derivatives are taken at aliases of both, which
        # are not.
        aliases = [t.view_as(t) if t.requires_grad else t for t in tensors]
        xs, params = split(kinds, aliases[1:])
        norms = reference_norm.rebuild_norms(params, given, kinds, eps)
        y, _ = reference_norm.norm_mixed_sum(xs, aliases[0], norms)
        wanted = [alias for alias, need in zip(aliases, needs, strict=True) if need]
        # As many derivatives as the caller asked for: the graph of this one is kept for them.
        found = torch.autograd.grad(y, wanted, grad, create_graph=True, allow_unused=True)
    left = iter(found)
    return [next(left) if need else None for need in needs]


def _save_sum(ctx, inputs, output) -> None:
    xs, weights, params, given, ctx.kinds, ctx.eps = inputs
    ctx.num_given = len(given)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], weights, *xs, *params)


def _differentiate_sum(ctx, grad, _grad_statistics):
    statistics, *tensors = ctx.saved_tensors
    needs_xs, needs_weights, needs_params, *_ = ctx.needs_input_grad
    needs = [needs_weights, *needs_xs, *needs_params]
    if grad is None:
        gradients = [None] * len(tensors)
    else:
        call = torch.ops.pyfast_nas.norm_mixed_sum_backward
        gradients = by_kernel(call, grad, tensors, statistics, ctx.kinds, ctx.eps, needs)
    grad_xs, grad_params = split(ctx.kinds, gradients[1:])
    return grad_xs, gradients[0], grad_params, [None] * ctx.num_given, None, None


def _save_backward(ctx, inputs, output) -> None:
    grad, xs, weights, params, statistics, *ctx.plan = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(statistics, grad, weights, *xs, *params)


def _differentiate_backward(ctx, by_xs, by_weights, by_params):
    statistics, grad, *tensors = ctx.saved_tensors
    kinds, eps, wanted_xs, wants_weights, wanted_params = ctx.plan
    needs_grad, needs_xs, needs_weights, needs_params, *_ = ctx.needs_input_grad
    wanted = [1 + k for k in wanted_xs] + [1 + len(kinds) + i for i in wanted_params]
    cotangents = [*by_xs, *by_params]
    if wants_weights:
        wanted, cotangents = [0, *wanted], [by_weights, *cotangents]
    rows = [row for row, kind in zip(statistics, filter(None, kinds), strict=True) if kind & 4]
    given = [values for row in rows for values in row]
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (grad, *tensors)]
        needs = [index in wanted for index in range(len(tensors))]
        first = by_reference(leaves[0], leaves[1:], given, kinds, eps, needs)
        pairs = zip([first[index] for index in wanted], cotangents, strict=True)
        pairs = [(one, by) for one, by in pairs if by is not None and one.requires_grad]
        second = [None] * len(leaves)
        if pairs:
            ones, bys = zip(*pairs, strict=True)
            second = torch.autograd.grad(ones, leaves, bys, allow_unused=True)
    needed = [needs_grad, needs_weights, *needs_xs, *needs_params]
    second = [value if need else None for value, need in zip(second, needed, strict=True)]
    of_xs, of_params = split(kinds, second[2:])
    # torch takes an empty list for an empty list of numbers, and wants as many gradients.
    lists = [None if numbers else [] for numbers in (kinds, eps, wanted_xs)]
    return second[0], of_xs, second[1], of_params, None, *lists, None, None if wanted_params else []


_library.register_autograd("norm_mixed_sum", _differentiate_sum, _save_sum)
_library.register_autograd("norm_mixed_sum_backward", _differentiate_backward, _save_backward)
