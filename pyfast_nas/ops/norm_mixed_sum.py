"""The weighted sum of batch-normalised candidates, without a normalised tensor.

Per channel the sum is an affine combination of the candidates, and so is the gradient of each of
them: batch norm costs one more read of each candidate, forward and backward, and no memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyfast_nas import _ext
from pyfast_nas.ops import _library, reference_norm
from pyfast_nas.ops._checks import fits_mixed_sum, widest_under_autocast
from pyfast_nas.ops._norm_checks import check_norm_mixed_sum
from pyfast_nas.ops._norm_derivatives import by_kernel, by_reference, split
from pyfast_nas.ops.candidates import Norm

__all__ = ["norm_mixed_sum"]

# Under torch.compile the operator stays whole: candidates that end in a batch norm come from a
# convolution, which Inductor fuses with nothing, and its own code would keep more for backward.
_COMPILES_OPAQUE = True


def norm_mixed_sum(
    xs: Sequence[Tensor], weights: Tensor, norms: Sequence[Norm | None]
) -> tuple[Tensor, Tensor]:
    r"""Normalise candidate outputs over the batch and sum them with mixing weights.

    .. math:: y = \sum_k w_k \Big( \gamma_k \frac{x_k - \mu_k}{\sqrt{v_k + \epsilon_k}} + \beta_k
        \Big)

    with mean and biased variance of each channel over all other dimensions, those of the batch or
    given ones. First derivatives in ``xs``, ``weights`` and every gamma and beta come from the
    kernel. Where derivatives of higher order, forward mode or a ``torch.func`` transform ask for
    more, the same is computed by plain PyTorch operations: exact and slower.

    Args:
        xs: Candidate outputs, all of one shape and device. Layouts may differ; those that differ
            from the first are copied once.
        weights: One mixing weight per candidate: the candidates' dtype, or float32 with bfloat16
            or float16 candidates. So are the tensors of the norms. Sums are accumulated in float32
            at least, statistics merged in float64.
        norms: The batch norm behind each candidate, or None for one that is added as it is. A given
            mean and variance are constants: no gradient goes to them.

    Returns:
        The sum, in the wider dtype of ``xs`` and ``weights`` and in the memory format of ``xs[0]``
        (``torch.empty_like``), and the statistics of every norm in order: mean and biased variance,
        float64, not differentiable.

    Shape:
        xs ``num_ops`` tensors ``[N, C, ...]``, weights ``[num_ops]``, tensors of a norm ``[C]`` ->
        y ``[N, C, ...]``, statistics ``[num_norms, 2, C]``.

    Raises:
        ValueError: If there is no candidate, a shape or count differs, or there is one value per
            channel and the statistics are those of the batch.
        TypeError: If something is not a tensor, or of a dtype that is not served.
        RuntimeError: If the tensors are on different devices.
        NotImplementedError: If a tensor is sparse, nested or without memory.

    Note:
        Backward keeps ``xs``, ``weights``, the gammas, betas and statistics, nothing else. Under
        ``torch.autocast``, candidates of different floating dtypes are brought to the widest.

    Example:
        >>> xs = [torch.tensor([[1.0], [3.0]]), torch.tensor([[10.0], [20.0]])]
        >>> y, statistics = norm_mixed_sum(xs, torch.tensor([2.0, 0.5]), [Norm(eps=0.0), None])
        >>> y.tolist(), statistics.tolist()
        ([[3.0], [12.0]], [[[2.0], [1.0]]])

    References:
        Ioffe & Szegedy, "Batch Normalization", ICML 2015, alg. 1; Liu, Simonyan & Yang, "DARTS:
        Differentiable Architecture Search", ICLR 2019, eq. 2.
    """
    if not fits_mixed_sum(xs, weights):
        xs = widest_under_autocast(xs, weights)
    check_norm_mixed_sum(xs, weights, norms)
    norms = [_with_constants(norm) for norm in norms]
    if not _ext.compiled_for(weights.device):
        return reference_norm.norm_mixed_sum(xs, weights, norms)
    params = [t for norm in norms if norm is not None for t in norm[:2] if t is not None]
    given = [t for norm in norms if norm is not None for t in norm[2:4] if t is not None]
    kinds = [_kind(norm) for norm in norms]
    eps = [float(norm.eps) for norm in norms if norm is not None]
    if torch.compiler.is_compiling():
        if _COMPILES_OPAQUE:
            return torch.ops.pyfast_nas.norm_mixed_sum(xs, weights, params, given, kinds, eps)
        return reference_norm.norm_mixed_sum(xs, weights, norms)
    tensors = (weights, *xs, *params)
    if _asks_for_more(tensors):
        return reference_norm.norm_mixed_sum(xs, weights, norms)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _NormMixedSum.apply(kinds, eps, len(given), *given, *tensors)
    return _library.call_norm_mixed_sum(xs, weights, params, given, kinds, eps)


def _with_constants(norm: Norm | None) -> Norm | None:
    if norm is None or norm.mean is None:
        return norm
    return norm._replace(mean=norm.mean.detach(), var=norm.var.detach())


def _kind(norm: Norm | None) -> int:
    """Code a norm as ``reference_norm.rebuild_norms`` reads it."""
    if norm is None:
        return 0
    return (1 if norm.gamma is None else 2) + (0 if norm.mean is None else 4)


def _asks_for_more(tensors: Sequence[Tensor]) -> bool:
    """Say whether forward mode or a torch.func transform is at work on this call."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


class _NormMixedSum(_library.DirectFunction):
    """(kinds, eps, number of given, *given, weights, *xs, *params) -> (y, statistics)."""

    @staticmethod
    def forward(kinds, eps, num_given, *tensors):
        given, weights = tensors[:num_given], tensors[num_given]
        xs, params = split(kinds, tensors[num_given + 1 :])
        return _library.call_norm_mixed_sum(xs, weights, params, given, kinds, eps)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.kinds, ctx.eps, ctx.num_given, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *tensors)

    @staticmethod
    def backward(ctx, grad, _grad_statistics):
        constants = (None,) * (3 + ctx.num_given)
        needs = ctx.needs_input_grad[len(constants) :]
        if grad is None:
            return *constants, *(None for _ in needs)
        statistics, *tensors = ctx.saved_tensors
        given, tensors = tensors[: ctx.num_given], tensors[ctx.num_given :]
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            gradients = by_reference(grad, tensors, given, ctx.kinds, ctx.eps, needs)
        else:
            call = _library.call_norm_mixed_sum_backward
            gradients = by_kernel(call, grad, tensors, statistics, ctx.kinds, ctx.eps, needs)
        return *constants, *gradients
