"""The weighted sum of candidate outputs, differentiable to any order.

The sum is one partial derivative of the trilinear form ``sum_k w_k <x_k, g>``; its backward holds
the other two. Differentiating either gives the same two operators again, so second-order search
stays in kernels.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyfast_nas import _ext
from pyfast_nas.ops import _library, reference
from pyfast_nas.ops._checks import check_mixed_sum, fits_mixed_sum, widest_under_autocast

__all__ = ["mixed_sum"]

# Under torch.compile the reference is traced: Inductor fuses the sum into its neighbours. With an
# activation before each candidate that is several times quicker than the opaque operator, which
# wins only where the sum stands alone.
_COMPILES_OPAQUE = False


def mixed_sum(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    r"""Sum candidate outputs with mixing weights in one pass over the data.

    .. math:: y = \sum_k w_k x_k

    Differentiable in ``xs`` and ``weights`` to any order, in forward and reverse mode and under
    ``vmap``. Every term counts: ``0 * inf`` is NaN, as in plain PyTorch. What needs no gradient
    costs none.

    Args:
        xs: Candidate outputs, all of one shape and device. Layouts may differ; those that differ
            from the first are copied once.
        weights: One mixing weight per candidate: the candidates' dtype, or float32 with bfloat16
            or float16 candidates. Sums are accumulated in float32 at least.

    Returns:
        The sum, in the wider of the two dtypes and in the memory format of ``xs[0]``
        (``torch.empty_like``: channels-last in, channels-last out).

    Shape:
        xs ``num_ops`` tensors of one shape ``[...]``, weights ``[num_ops]`` -> ``[...]``.

    Raises:
        ValueError: If there is no candidate, or a shape or count differs.
        TypeError: If something is not a tensor, or of a dtype that is not served.
        RuntimeError: If the tensors are on different devices.
        NotImplementedError: If a tensor is sparse, nested or without memory.

    Note:
        Under ``torch.autocast``, candidates of different floating dtypes are brought to the widest
        of them, as ``torch.cat`` does; the weights stay as they are. Elsewhere they are refused.
        Backward keeps ``xs`` and ``weights``, nothing else.

    Example:
        >>> xs = [torch.ones(2, 3), torch.full((2, 3), 10.0)]
        >>> mixed_sum(xs, torch.tensor([0.25, 0.5]))
        tensor([[5.2500, 5.2500, 5.2500],
                [5.2500, 5.2500, 5.2500]])

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, eq. 2.
    """
    if not fits_mixed_sum(xs, weights):
        xs = widest_under_autocast(xs, weights)
        check_mixed_sum(xs, weights)
    if not _ext.compiled_for(weights.device):
        return reference.mixed_sum(xs, weights)
    if torch.compiler.is_compiling():
        if _COMPILES_OPAQUE:
            return torch.ops.pyfast_nas.mixed_sum(xs, weights)
        return reference.mixed_sum(xs, weights)
    if _needs_derivatives(weights, *xs):
        return _MixedSum.apply(weights, *xs)
    return _library.call_mixed_sum(xs, weights)


def _needs_derivatives(*tensors: Tensor) -> bool:
    """Say whether anybody may ask for a derivative, or is batching, at this call."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _combine(weights: Tensor, xs: Sequence[Tensor]) -> Tensor:
    if _needs_derivatives(weights, *xs):
        return _MixedSum.apply(weights, *xs)
    return _library.call_mixed_sum(xs, weights)


def _scatter_and_dots(
    grad: Tensor,
    weights: Tensor,
    xs: Sequence[Tensor],
    *,
    wanted: Sequence[int] = (),
    wants_weights: bool = False,
) -> tuple[list[Tensor], Tensor | None]:
    """Return ``weights[k] * grad`` for the wanted k, and ``<grad, xs[k]>`` for all k if asked."""
    if not wanted and not wants_weights:
        return [], None
    if _needs_derivatives(grad, weights, *xs):
        outputs = _MixedSumBackward.apply(tuple(wanted), wants_weights, grad, weights, *xs)
        return list(outputs[: len(wanted)]), outputs[-1] if wants_weights else None
    grad_xs, grad_weights = _library.call_mixed_sum_backward(
        grad, xs, weights, wanted, wants_weights
    )
    return grad_xs, grad_weights if wants_weights else None


class _MixedSum(_library.DirectFunction):
    """(weights, *xs) -> y."""

    @staticmethod
    def forward(weights: Tensor, *xs: Tensor) -> Tensor:
        return _library.call_mixed_sum(xs, weights)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        weights, *xs = ctx.saved_tensors
        wants_weights, *needs_xs = ctx.needs_input_grad
        grad_weights, grad_xs = _sum_gradients(grad, weights, xs, wants_weights, needs_xs)
        return grad_weights, *grad_xs

    @staticmethod
    def jvp(ctx, weights_tangent, *xs_tangents):
        weights, *xs = ctx.saved_tensors
        tangents = {k: t for k, t in enumerate(xs_tangents) if t is not None}
        return _combine_both(weights, tangents, weights_tangent, xs)

    @staticmethod
    def vmap(info, in_dims, weights, *xs):
        weights_dim, *xs_dims = in_dims
        xs = _with_batch_first(xs, xs_dims, info.batch_size)
        if weights_dim is None:
            return _combine(weights, xs), 0
        dtype = torch.promote_types(weights.dtype, xs[0].dtype)
        wide = torch.promote_types(dtype, torch.float32)
        columns = weights.movedim(weights_dim, 0).to(wide).unbind(1)
        y = sum(_beside(w, x) * x.to(wide) for w, x in zip(columns, xs, strict=True))
        return y.to(dtype), 0


class _MixedSumBackward(_library.DirectFunction):
    """(wanted, wants_weights, grad, weights, *xs) -> (*grad_xs[wanted], grad_weights if asked)."""

    @staticmethod
    def forward(wanted, wants_weights, grad, weights, *xs):
        grad_xs, grad_weights = _library.call_mixed_sum_backward(
            grad, xs, weights, wanted, wants_weights
        )
        return (*grad_xs, grad_weights) if wants_weights else tuple(grad_xs)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.set_materialize_grads(False)
        ctx.wanted, ctx.wants_weights, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        grad, weights, *xs = ctx.saved_tensors
        _, _, *needs = ctx.needs_input_grad
        by_weights = cotangents[-1] if ctx.wants_weights else None
        by_xs = dict(zip(ctx.wanted, cotangents, strict=False))
        gradients = _backward_gradients(grad, weights, xs, by_xs, by_weights, needs)
        return None, None, *gradients

    @staticmethod
    def jvp(ctx, _wanted, _wants_weights, grad_tangent, weights_tangent, *xs_tangents):
        grad, weights, *xs = ctx.saved_tensors
        outputs = []
        for k in ctx.wanted:
            terms = []
            if weights_tangent is not None:
                terms.append(weights_tangent[k] * grad)
            if grad_tangent is not None:
                terms.append(weights[k] * grad_tangent)
            outputs.append(sum(terms).to(xs[k].dtype) if terms else torch.zeros_like(xs[k]))
        if ctx.wants_weights:
            tangents = {k: t for k, t in enumerate(xs_tangents) if t is not None}
            terms = [_dots(grad, weights, tangents)] if tangents else []
            if grad_tangent is not None:
                terms.append(_dots(grad_tangent, weights, dict(enumerate(xs))))
            outputs.append(sum(terms) if terms else torch.zeros_like(weights))
        return tuple(outputs)

    @staticmethod
    def vmap(info, in_dims, wanted, wants_weights, grad, weights, *xs):
        _, _, grad_dim, weights_dim, *xs_dims = in_dims
        xs = _with_batch_first(xs, xs_dims, info.batch_size)
        (grad,) = _with_batch_first([grad], [grad_dim], info.batch_size)
        (weights,) = _with_batch_first([weights], [weights_dim], info.batch_size)
        wide = torch.promote_types(grad.dtype, torch.float32)
        g, w = grad.to(wide), weights.to(wide)
        outputs = [(_beside(w[:, k], g) * g).to(xs[k].dtype) for k in wanted]
        if wants_weights:
            dots = [(g * x).flatten(1).sum(1) for x in xs]
            outputs.append(torch.stack(dots, dim=1).to(weights.dtype))
        return tuple(outputs), (0,) * len(outputs)


def _sum_gradients(
    grad: Tensor | None,
    weights: Tensor,
    xs: Sequence[Tensor],
    wants_weights: bool,
    needs_xs: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Backward of the sum: gradients of ``weights`` and of each of ``xs``."""
    if grad is None:
        return None, [None] * len(xs)
    wanted = [k for k, need in enumerate(needs_xs) if need]
    grad_xs, grad_weights = _scatter_and_dots(
        grad, weights, xs, wanted=wanted, wants_weights=wants_weights
    )
    return grad_weights, _spread(grad_xs, wanted, len(xs))


def _backward_gradients(
    grad: Tensor,
    weights: Tensor,
    xs: Sequence[Tensor],
    by_xs: dict[int, Tensor | None],
    by_weights: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Backward of the backward: gradients of ``grad``, ``weights`` and each of ``xs``.

    It differentiates ``sum_k <by_xs[k], w_k g> + sum_k by_weights[k] <g, x_k>``.
    """
    needs_grad, needs_weights, *needs_xs = needs
    by_xs = {k: cotangent for k, cotangent in by_xs.items() if cotangent is not None}
    wanted = [k for k, need in enumerate(needs_xs) if need and by_weights is not None]
    grad_grad = _combine_both(weights, by_xs, by_weights, xs) if needs_grad else None
    grad_weights, grad_xs = None, []
    if needs_weights and wanted and len(by_xs) == len(xs):
        # The dots with the cotangents and the scatter of the gradient share one pass.
        cotangents = [by_xs[k] for k in range(len(xs))]
        grad_xs, grad_weights = _scatter_and_dots(
            grad, by_weights, cotangents, wanted=wanted, wants_weights=True
        )
    else:
        if wanted:
            grad_xs, _ = _scatter_and_dots(grad, by_weights, xs, wanted=wanted)
        if needs_weights and by_xs:
            grad_weights = _dots(grad, weights, by_xs)
    return [grad_grad, grad_weights, *_spread(grad_xs, wanted, len(xs))]


def _combine_both(
    weights: Tensor, by_xs: dict[int, Tensor], by_weights: Tensor | None, xs: Sequence[Tensor]
) -> Tensor | None:
    """sum_k weights[k] by_xs[k] + sum_k by_weights[k] xs[k], in one pass; None for no terms."""
    factors = [weights[k] for k in by_xs]
    tensors = list(by_xs.values())
    if by_weights is not None:
        factors += by_weights.unbind()
        tensors += xs
    return _combine(torch.stack(factors), tensors) if tensors else None


def _dots(grad: Tensor, weights: Tensor, xs: dict[int, Tensor]) -> Tensor:
    """<grad, xs[k]> at position k, zero where there is no k."""
    _, dots = _scatter_and_dots(
        grad, torch.stack([weights[k] for k in xs]), list(xs.values()), wants_weights=True
    )
    if len(xs) == weights.shape[0]:
        return dots
    zero = torch.zeros_like(dots[0])
    place = {k: i for i, k in enumerate(xs)}
    return torch.stack([dots[place[k]] if k in place else zero for k in range(weights.shape[0])])


def _spread(values: Iterable[Tensor], where: Iterable[int], count: int) -> list[Tensor | None]:
    """Put ``values`` at the positions ``where`` of a list of ``count``, None elsewhere."""
    spread: list[Tensor | None] = [None] * count
    for k, value in zip(where, values, strict=True):
        spread[k] = value
    return spread


def _with_batch_first(
    tensors: Sequence[Tensor], dims: Sequence[int | None], size: int
) -> list[Tensor]:
    return [
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims, strict=True)
    ]


def _beside(column: Tensor, x: Tensor) -> Tensor:
    """View a ``[batch]`` column so that it broadcasts over ``x`` of shape ``[batch, ...]``."""
    return column.reshape(-1, *(1,) * (x.dim() - 1))


def _save_sum(ctx, inputs, output) -> None:
    xs, weights = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weights, *xs)


def _differentiate_sum(ctx, grad):
    weights, *xs = ctx.saved_tensors
    needs_xs, wants_weights = ctx.needs_input_grad
    grad_weights, grad_xs = _sum_gradients(grad, weights, xs, wants_weights, needs_xs)
    return grad_xs, grad_weights


def _save_backward(ctx, inputs, output) -> None:
    grad, xs, weights, ctx.wanted, ctx.wants_weights = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, weights, *xs)


def _differentiate_backward(ctx, by_xs, by_weights):
    grad, weights, *xs = ctx.saved_tensors
    needs_grad, needs_xs, needs_weights, *_ = ctx.needs_input_grad
    grad_grad, grad_weights, *grad_xs = _backward_gradients(
        grad,
        weights,
        xs,
        dict(zip(ctx.wanted, by_xs, strict=True)),
        by_weights if ctx.wants_weights else None,
        [needs_grad, needs_weights, *needs_xs],
    )
    # torch takes an empty list for an empty list of tensors, and wants as many gradients.
    return grad_grad, grad_xs, grad_weights, None if ctx.wanted else [], None


_library.register_autograd("mixed_sum", _differentiate_sum, _save_sum)
_library.register_autograd("mixed_sum_backward", _differentiate_backward, _save_backward)
