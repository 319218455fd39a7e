"""A whole node of a DARTS-style cell in one operator: every candidate of every edge into it.

The kernel keeps the inputs and the batch statistics for backward, nothing else: whatever backward
needs besides is computed again, sample by sample, in the cache.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyfast_nas import _ext
from pyfast_nas.ops import _library, reference_edges
from pyfast_nas.ops._checks import HALVES
from pyfast_nas.ops._node_checks import check_fused_node
from pyfast_nas.ops.candidates import Candidate
from pyfast_nas.ops.node_plan import Plan, biases_of, params_of

__all__ = [
    "allows_tf32",
    "asks_for_more",
    "fused_node",
    "given_statistics",
    "is_batched",
    "laid_out",
    "serves_fused_node",
    "widened",
    "zeros_where",
]


def serves_fused_node(x: Tensor) -> bool:
    """Say whether a compiled kernel would serve a node with the input ``x``.

    Example:
        >>> serves_fused_node(torch.ones(2, 3, 4, 4, dtype=torch.int64))
        False
    """
    return (
        x.device.type in ("cpu", "cuda")
        and (
            x.dtype in (torch.float32, torch.float64)
            or (x.dtype in HALVES and _ext.has_cuda_kernels(x.device))
        )
        and x.dim() == 4
        and x.numel() > 0
        and _ext.compiled_for(x.device)
    )


def fused_node(
    xs: Sequence[Tensor],
    weights: Tensor,
    candidates: Sequence[Candidate],
    strides: Sequence[int],
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Sum weighted candidate operations over all edges into one node.

    .. math:: y = \sum_k w_k\, o_k(x_{e(k)})

    First derivatives come from the kernel. Where derivatives of higher order, forward mode or a
    ``torch.func`` transform ask for more, the same is computed by plain PyTorch operations: exact
    and slower.

    Args:
        xs: Input of each edge, all of one floating dtype; on the CPU kernels serve float32 and
            float64. Channels-last is taken as it is, also some of the channels of a wider tensor;
            other layouts are copied once.
        weights: Mixing weight of each candidate: in the dtype of ``xs``, or float32 with bfloat16
            or float16 inputs. So are the tensors of the candidates.
        candidates: What is summed. A candidate that is not named costs nothing.
        strides: 1 or 2 for each edge.
        selected: Which candidates run, bool, on the device of ``xs``, where the host never asks
            for it; None runs all. Of the others nothing is computed or read, NaN included: they
            add nothing and their gradients are zero.

    Returns:
        The sum, channels-last, in the dtype of ``xs``, and the statistics of every batch norm in
        the order of the candidates and their stages: mean and biased variance, float64, not
        differentiable. Those that a candidate would have measured that did not run are zero.

    Note:
        With 16-bit inputs everything between inputs and sum is float32; the sum and the gradients
        of the inputs are rounded once, or once for each part of a node of very many candidates.
        The gradients of float32 weights and parameters are float32.

        On a GPU pointwise and full convolutions round the factors of their products to TF32 where
        ``torch.backends.cudnn.conv.fp32_precision`` says so (by default it does), in backward as in
        the forward that it belongs to; under ``torch.compile`` they do not.

    Shape:
        each x ``[N, C, H, W]``, weights and selected ``[num_candidates]`` ->
        y ``[N, C_out, ceil(H / stride), ceil(W / stride)]``, statistics ``[norms, 2, C_out]``.

    Raises:
        TypeError: If a tensor is of another dtype than those.
        ValueError: If shapes, strides or counts do not fit together, or a batch norm in training
            mode has one value per channel.

    Example:
        >>> x = torch.ones(2, 3, 4, 4)
        >>> y, _ = fused_node([x], torch.tensor([0.5, 2.0]), [Candidate("skip", 0)] * 2, [1])
        >>> float(y[0, 0, 0, 0])
        2.5
        >>> one = torch.tensor([False, True])
        >>> y, _ = fused_node([x], torch.tensor([0.5, 2.0]), [Candidate("skip", 0)] * 2, [1], one)
        >>> float(y[0, 0, 0, 0])
        2.0

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, eqs. 1-2.
    """
    check_fused_node(xs, weights, candidates, strides, selected)
    params, biases = list(params_of(candidates)), biases_of(candidates)
    traced = torch.compiler.is_compiling()
    if (
        not serves_fused_node(xs[0])
        or asks_for_more([weights, *xs, *params, *biases])
        or (traced and biases)
    ):
        return reference_edges.fused_node(xs, weights, candidates, strides, selected)
    # A trace cannot read the switch: compiled calls stay with float32.
    plan = Plan.of(candidates, strides, not traced and allows_tf32())
    given = given_statistics(candidates, xs[0])
    xs = [laid_out(x) for x in xs]
    weights, *params = widened([weights, *params])
    if traced:
        arguments = *plan.arguments(), selected
        return torch.ops.pyfast_nas.fused_node(xs, weights, params, given, *arguments)
    tensors = (weights, *xs, *params, *biases)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _FusedNode.apply(plan, given, selected, *tensors)
    return _library.call_fused_node(xs, weights, params, given, *plan.arguments(), selected)


def allows_tf32() -> bool:
    """Say whether torch lets convolutions of a GPU round the factors of float32 products to TF32.

    Example:
        >>> from pyfast_nas.testing import full_float32
        >>> with full_float32():
        ...     allows_tf32()
        False
    """
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


def laid_out(x: Tensor) -> Tensor:
    """Return ``x`` if it is channels-last, or some channels of such a tensor, else a copy."""
    samples, channels, rows, columns = x.shape
    by_sample, by_channel, by_row, by_pixel = x.stride()
    step = by_pixel if columns > 1 else by_row if rows > 1 else channels
    if (
        step >= channels
        and (channels == 1 or by_channel == 1)
        and (rows == 1 or by_row == columns * step)
        and (samples == 1 or by_sample >= rows * columns * step)
    ):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Bring 16-bit weights and parameters to float32, as the kernels take them."""
    return [t.float() if t.dtype in HALVES else t for t in tensors]


def asks_for_more(tensors: Sequence[Tensor]) -> bool:
    """Say whether forward mode or a torch.func transform is at work on a call with ``tensors``."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def given_statistics(candidates: Sequence[Candidate], x: Tensor) -> Tensor | None:
    """Stack given means and variances, one row per norm; rows of batch statistics are zero."""
    norms = [norm for candidate in candidates for norm in candidate.norms()]
    given = {i: norm for i, norm in enumerate(norms) if norm.mean is not None}
    if not given:
        return None
    width = next(iter(given.values())).mean.shape[0]
    nothing = torch.zeros(2, width, dtype=torch.float64, device=x.device)
    return torch.stack(
        [
            torch.stack([given[i].mean, given[i].var]).double() if i in given else nothing
            for i in range(len(norms))
        ]
    )


def zeros_where(needs: Sequence[bool], biases: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients of biases that cancel out: zeros where one is needed."""
    return [torch.zeros_like(b) if need else None for b, need in zip(biases, needs, strict=True)]


def is_batched(grad: Tensor) -> bool:
    """Say whether a backward runs under vmap, also that of is_grads_batched."""
    is_legacy = torch._C._functorch.is_legacy_batchedtensor(grad)
    return is_legacy or torch._C._are_functorch_transforms_active()


class _FusedNode(_library.DirectFunction):
    """(plan, given, selected, weights, *xs, *params, *biases) -> (y, statistics)."""

    @staticmethod
    def forward(plan: Plan, given: Tensor | None, selected: Tensor | None, *tensors: Tensor):
        weights, xs, params, _ = _split(plan, tensors)
        return _library.call_fused_node(xs, weights, params, given, *plan.arguments(), selected)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.plan, given, *tensors = inputs  # the first says which candidates run
        _, statistics = output
        ctx.has_given = given is not None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(statistics)
        ctx.save_for_backward(statistics, *tensors)

    @staticmethod
    def backward(ctx, grad, _grad_statistics):
        if grad is None:
            return tuple(None for _ in ctx.needs_input_grad)
        statistics, selected, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled() or is_batched(grad):
            given = statistics if ctx.has_given else None
            found = _by_reference(ctx.plan, grad, tensors, given, selected, needs)
        else:
            found = _by_kernel(ctx.plan, grad, tensors, statistics, selected, needs)
        return None, None, None, *found


def _split(plan: Plan, tensors: Sequence) -> tuple[Any, Sequence, Sequence, Sequence]:
    """Return weights, inputs, parameters and biases of what lies flat in this order."""
    edges, end = 1 + len(plan.strides), len(tensors) - sum(plan.biased)
    return tensors[0], tensors[1:edges], tensors[edges:end], tensors[end:]


def _by_kernel(
    plan: Plan,
    grad: Tensor,
    tensors: Sequence[Tensor],
    statistics: Tensor,
    selected: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of (weights, *xs, *params, *biases) that are needed, None for the others."""
    edges = len(plan.strides)
    weights, xs, params, biases = _split(plan, tensors)
    _, needs_xs, needs_params, needs_biases = _split(plan, needs)
    wanted_xs = [i for i, need in enumerate(needs_xs) if need]
    wanted_params = [i for i, need in enumerate(needs_params) if need]
    grad_xs, grad_weights, grad_params = _library.call_fused_node_backward(
        laid_out(grad),
        xs,
        weights,
        params,
        statistics,
        *plan.arguments(),
        wanted_xs,
        needs[0],
        wanted_params,
        selected,
    )
    gradients: list[Tensor | None] = [None] * (1 + edges + len(params))
    gradients += zeros_where(needs_biases, biases)
    if needs[0]:
        gradients[0] = grad_weights
    for i, value in zip(wanted_xs, grad_xs, strict=True):
        gradients[1 + i] = value
    for i, value in zip(wanted_params, grad_params, strict=True):
        gradients[1 + edges + i] = value
    return gradients


def _by_reference(
    plan: Plan,
    grad: Tensor,
    tensors: Sequence[Tensor],
    given: Tensor | None,
    selected: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients by plain operations, differentiable in turn."""
    with torch.enable_grad():
        # One input may be computed from another: derivatives are taken at aliases of both, which
        # are not.
        aliases = [t.view_as(t) if t.requires_grad else t for t in tensors]
        weights, xs, params, biases = _split(plan, aliases)
        candidates = plan.rebuild(params, given, biases)
        y, _ = reference_edges.fused_node(xs, weights, candidates, plan.strides, selected)
        wanted = [alias for alias, need in zip(aliases, needs, strict=True) if need]
        # As many derivatives as the caller asked for: the graph of this one is kept for them.
        found = torch.autograd.grad(y, wanted, grad, create_graph=True, allow_unused=True)
    left = iter(found)
    return [next(left) if need else None for need in needs]


def _save(ctx, inputs, output) -> None:
    # An argument at its default may be left out here.
    xs, weights, params, given, *lists, allow_tf32, selected = (*inputs, None)[:9]
    _, statistics = output
    ctx.plan = Plan(*map(tuple, lists), allow_tf32)
    ctx.has_given, ctx.edges = given is not None, len(xs)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(statistics, selected, weights, *xs, *params)


def _differentiate(ctx, grad, _grad_statistics):
    statistics, selected, *tensors = ctx.saved_tensors
    needs_xs, needs_weights, needs_params, *_ = ctx.needs_input_grad
    needs = [needs_weights, *needs_xs, *needs_params]
    gradients = [None] * len(tensors)
    if grad is not None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            given = statistics if ctx.has_given else None
            gradients = _by_reference(ctx.plan, grad, tensors, given, selected, needs)
        else:
            gradients = _by_kernel(ctx.plan, grad, tensors, statistics, selected, needs)
    of_weights, of_xs = gradients[0], gradients[1 : 1 + ctx.edges]
    nothing = (None for _ in ctx.needs_input_grad[3:])
    return of_xs, of_weights, gradients[1 + ctx.edges :], *nothing


def _save_nothing(ctx, inputs, output) -> None:
    pass


def _refuse_to_differentiate(ctx, *_gradients):
    raise RuntimeError(
        "fused_node_backward: a derivative of the compiled backward must be taken through "
        "pyfast_nas.ops.fused_node with create_graph=True, got one of the operator itself"
    )


_library.register_autograd("fused_node", _differentiate, _save)
_library.register_autograd("fused_node_backward", _refuse_to_differentiate, _save_nothing)
