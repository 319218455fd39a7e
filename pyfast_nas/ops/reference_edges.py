"""The meaning of ``fused_node`` in plain PyTorch: candidates of DARTS-style edges and their sum.

Differentiable to any order and under every transform. Batch norm is written out, since torch's own
gives wrong numbers when a forward-mode derivative of it is differentiated in reverse.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from pyfast_nas.ops.candidates import Candidate, Norm, Stage, map_tensors
from pyfast_nas.ops.node_plan import Plan

__all__ = ["fused_node", "planned_node", "planned_node_backward"]


def fused_node(
    xs: Sequence[Tensor],
    weights: Tensor,
    candidates: Sequence[Candidate],
    strides: Sequence[int],
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return sum_k weights[k] * candidate_k(xs[edge_k]) and the statistics of every norm.

    Half types are computed in float32 and the sum is rounded once, under autocast too.
    """
    with _without_autocast(xs[0].device.type):
        return _sum(xs, weights, candidates, strides, selected)


def _sum(
    xs: Sequence[Tensor],
    weights: Tensor,
    candidates: Sequence[Candidate],
    strides: Sequence[int],
    selected: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = xs[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    xs, weights = [x.to(wide) for x in xs], weights.to(wide)
    y: Tensor | None = None
    statistics: list[Tensor] = []
    flags = [None] * len(candidates) if selected is None else selected.unbind()
    for weight, candidate, flag in zip(weights.unbind(), candidates, flags, strict=True):
        stride = strides[candidate.edge]
        term = _term(candidate, xs[candidate.edge], weight, stride, flag, statistics)
        y = term if y is None else y + term
    width = y.shape[1]
    if not statistics:
        return y.to(dtype), y.new_empty((0, 2, width), dtype=torch.float64)
    return y.to(dtype), torch.stack(statistics)


def planned_node(
    xs: Sequence[Tensor],
    weights: Tensor,
    params: Sequence[Tensor],
    given: Tensor | None,
    layout: Sequence[int],
    eps: Sequence[float],
    strides: Sequence[int],
    allow_tf32: bool,
    selected: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the same for the numbers and tensors that the operator takes, channels-last."""
    plan = Plan(tuple(layout), tuple(eps), tuple(strides), allow_tf32)
    candidates = plan.rebuild(params, given)
    y, statistics = fused_node(xs, weights, candidates, strides, selected)
    return y.contiguous(memory_format=torch.channels_last), statistics


def planned_node_backward(
    grad: Tensor,
    xs: Sequence[Tensor],
    weights: Tensor,
    params: Sequence[Tensor],
    statistics: Tensor,
    layout: Sequence[int],
    eps: Sequence[float],
    strides: Sequence[int],
    allow_tf32: bool,
    wanted_xs: Sequence[int],
    wants_weights: bool,
    wanted_params: Sequence[int],
    selected: Tensor | None = None,
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Return the gradients of the wanted inputs, of the weights (or nothing), of the parameters."""
    kind = grad.device.type
    with _autograd(), _without_autocast(kind), torch.enable_grad():
        weights, *rest = (t.detach().requires_grad_() for t in (weights, *xs, *params))
        xs, params = rest[: len(xs)], rest[len(xs) :]
        y, _ = planned_node(
            xs, weights, params, statistics, layout, eps, strides, allow_tf32, selected
        )
        leaves = [xs[i] for i in wanted_xs] + [params[i] for i in wanted_params]
        *found, of_weights = torch.autograd.grad(
            y, [*leaves, weights], grad, allow_unused=True, materialize_grads=True
        )
    of_xs = [g.contiguous(memory_format=torch.channels_last) for g in found[: len(wanted_xs)]]
    of_params = [g.contiguous() for g in found[len(wanted_xs) :]]
    return of_xs, of_weights if wants_weights else weights.new_empty(0), of_params


def _autograd() -> AbstractContextManager:
    """Let autograd record inside an operator's kernel, where the dispatcher leaves it out."""
    nothing = torch._C.DispatchKeySet(torch._C.DispatchKey.Undefined)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), nothing)


def _without_autocast(kind: str) -> AbstractContextManager:
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def _term(
    candidate: Candidate,
    x: Tensor,
    weight: Tensor,
    stride: int,
    flag: Tensor | None,
    statistics: list[Tensor],
) -> Tensor:
    """Return what a candidate adds to the node.

    One that is not selected runs on zeros, so that nothing of it, infinities and NaN included,
    reaches the sum, and nothing of the gradient reaches it.
    """
    if flag is None:
        return weight * _run(candidate, x, stride, statistics)
    found: list[Tensor] = []
    (on_zeros,) = map_tensors([candidate], lambda t: torch.where(flag, t, 0))
    y = _run(on_zeros, torch.where(flag, x, 0), stride, found)
    for norm, values in zip(candidate.norms(), found, strict=True):
        given = 0 if norm.mean is None else torch.stack([norm.mean, norm.var]).double()
        statistics.append(torch.where(flag, values, given))
    return torch.where(flag, torch.where(flag, weight, 0) * y, 0)


def _run(candidate: Candidate, x: Tensor, stride: int, statistics: list[Tensor]) -> Tensor:
    if candidate.kind == "skip":
        return x
    if candidate.kind == "conv":
        for stage in candidate.stages:
            x = _convolve(torch.relu(x), stage, stride)
            x = _normalise(x, stage.norm, statistics, stage.bias)
            stride = 1
        return x
    if candidate.kind == "max_pool":
        x = F.max_pool2d(x, 3, stride=stride, padding=1)
    else:
        x = F.avg_pool2d(x, 3, stride=stride, padding=1, count_include_pad=False)
    return x if candidate.norm is None else _normalise(x, candidate.norm, statistics)


def _convolve(x: Tensor, stage: Stage, stride: int) -> Tensor:
    if stage.shifted is not None:
        halves = (
            F.conv2d(x, stage.matrix.to(x.dtype), stride=2),
            F.conv2d(x[:, :, 1:, 1:], stage.shifted.to(x.dtype), stride=2),
        )
        return torch.cat(halves, dim=1)
    kernel = stage.matrix if stage.taps is None else stage.taps
    z = F.conv2d(
        x,
        kernel.to(x.dtype),
        stride=stride,
        padding=stage.dilation * (kernel.shape[-1] - 1) // 2,
        dilation=stage.dilation,
        groups=1 if stage.taps is None else x.shape[1],
    )
    return z if stage.taps is None else F.conv2d(z, stage.matrix.to(x.dtype))


def _normalise(
    y: Tensor, norm: Norm, statistics: list[Tensor], bias: Tensor | None = None
) -> Tensor:
    if bias is not None:
        y = y + _per_channel(bias)
    if norm.mean is None:
        mean = y.mean((0, 2, 3))
        centred = y - _per_channel(mean)
        var = centred.square().mean((0, 2, 3))
    else:
        mean, var = norm.mean.to(y.dtype), norm.var.to(y.dtype)
        centred = y - _per_channel(mean)
    without = mean if bias is None else mean - bias
    statistics.append(torch.stack([without.detach(), var.detach()]).double())
    y = centred * _per_channel((var + norm.eps).rsqrt())
    if norm.gamma is None:
        return y
    gamma, beta = norm.gamma.to(y.dtype), norm.beta.to(y.dtype)
    return y * _per_channel(gamma) + _per_channel(beta)


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
