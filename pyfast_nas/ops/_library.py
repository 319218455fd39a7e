"""Every schema, fake kernel and autograd formula; the only user of torch.library.

A kernel registered from C++ for CPU or CUDA takes precedence over the reference given here as
``CompositeExplicitAutograd``, by the dispatcher's own order of keys.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function

from pyfast_nas.ops import (
    reference,
    reference_edges,
    reference_norm,
    reference_tensor_list,
)
from pyfast_nas.ops._checks import check_mixed_sum
from pyfast_nas.ops._list_checks import check_lists
from pyfast_nas.ops._sampling_checks import check_block, check_gumbel_topk, check_seed
from pyfast_nas.ops.node_plan import Plan

__all__ = [
    "CPU_KEYS",
    "CUDA_KEYS",
    "LIB",
    "DirectFunction",
    "call_axpy",
    "call_cg_step",
    "call_difference",
    "call_dot",
    "call_fused_node",
    "call_fused_node_backward",
    "call_fused_node_backward_into",
    "call_fused_node_into",
    "call_gumbel_topk",
    "call_gumbel_topk_backward",
    "call_mixed_sum",
    "call_mixed_sum_backward",
    "call_neumann_step",
    "call_norm_mixed_sum",
    "call_norm_mixed_sum_backward",
    "call_perturb",
    "call_scale",
    "register_autograd",
    "run_gumbel_topk",
]

LIB = torch.library.Library("pyfast_nas", "DEF")
LIB.define("mixed_sum(Tensor[] xs, Tensor weights) -> Tensor")
LIB.define(
    "mixed_sum_backward(Tensor grad, Tensor[] xs, Tensor weights, int[] wanted, bool wants_weights)"
    " -> (Tensor[], Tensor)"
)
LIB.define(
    "gumbel_topk(Tensor logits, int k, float tau, Tensor seed, bool conditional, bool keep_keys, "
    "Tensor? noise) -> (Tensor weights, Tensor indices, Tensor keys)"
)
LIB.define(
    "gumbel_topk_backward(Tensor grad_weights, Tensor keys, Tensor indices, float tau, "
    "bool conditional) -> Tensor"
)
LIB.define(
    "philox_uniform(Tensor seed, int first_row, int rows, int columns, int stream) -> Tensor"
)
LIB.define(
    "fused_node(Tensor[] xs, Tensor weights, Tensor[] params, Tensor? given, int[] layout, "
    "float[] eps, int[] strides, bool allow_tf32, Tensor? selected=None) "
    "-> (Tensor y, Tensor statistics)"
)
LIB.define(
    "fused_node_into(Tensor(a!) place, Tensor[] xs, Tensor weights, Tensor[] params, "
    "Tensor? given, int[] layout, float[] eps, int[] strides, bool allow_tf32, "
    "Tensor? selected=None) "
    "-> Tensor statistics"
)
LIB.define(
    "fused_node_backward(Tensor grad, Tensor[] xs, Tensor weights, Tensor[] params, "
    "Tensor statistics, int[] layout, float[] eps, int[] strides, bool allow_tf32, "
    "int[] wanted_xs, bool wants_weights, int[] wanted_params, Tensor? selected=None) "
    "-> (Tensor[], Tensor, Tensor[])"
)
LIB.define(
    "fused_node_backward_into(Tensor(a!)[] grad_xs, int[] adds, Tensor grad, Tensor[] xs, "
    "Tensor weights, Tensor[] params, Tensor statistics, int[] layout, float[] eps, int[] strides, "
    "bool allow_tf32, int[] wanted_xs, bool wants_weights, int[] wanted_params, "
    "Tensor? selected=None) "
    "-> (Tensor, Tensor[])"
)
_mixed_sum = torch.ops.pyfast_nas.mixed_sum.default
_mixed_sum_backward = torch.ops.pyfast_nas.mixed_sum_backward.default
_gumbel_topk = torch.ops.pyfast_nas.gumbel_topk.default
_gumbel_topk_backward = torch.ops.pyfast_nas.gumbel_topk_backward.default
_fused_node = torch.ops.pyfast_nas.fused_node.default
_fused_node_into = torch.ops.pyfast_nas.fused_node_into.default
_fused_node_backward_into = torch.ops.pyfast_nas.fused_node_backward_into.default
_fused_node_backward = torch.ops.pyfast_nas.fused_node_backward.default
# (keyset, *arguments): the kernel past all layers of the dispatcher, only where nobody looks on.
run_gumbel_topk = _gumbel_topk._handle.redispatch_boxed
CPU_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
CUDA_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def register_autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Give the operator ``name`` its derivative where it is called as ``torch.ops.pyfast_nas``."""
    torch.library.register_autograd(
        f"pyfast_nas::{name}", backward, setup_context=setup_context, lib=LIB
    )


class DirectFunction(Function):
    """A ``Function`` that does not read the signature of its forward again at every call."""

    @classmethod
    def apply(cls, *args):
        """Run forward; under a torch.func transform, by torch's own longer way."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(Function, cls).apply(*unwrap_dead_wrappers(args))


def call_mixed_sum(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Run the kernel without the autograd layer, which alone costs ten microseconds."""
    with torch._C._AutoDispatchBelowAutograd():
        return _mixed_sum(xs, weights)


def call_mixed_sum_backward(
    grad: Tensor, xs: Sequence[Tensor], weights: Tensor, wanted: Sequence[int], wants_weights: bool
) -> tuple[list[Tensor], Tensor]:
    """Run the backward kernel without the autograd layer."""
    with torch._C._AutoDispatchBelowAutograd():
        return _mixed_sum_backward(grad, xs, weights, wanted, wants_weights)


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


def call_gumbel_topk(
    logits: Tensor,
    k: int,
    tau: float,
    seed: Tensor,
    conditional: bool,
    keep_keys: bool,
    noise: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the sampler without the autograd layer."""
    with torch._C._AutoDispatchBelowAutograd():
        return _gumbel_topk(logits, k, tau, seed, conditional, keep_keys, noise)


def call_gumbel_topk_backward(
    grad_weights: Tensor, keys: Tensor, indices: Tensor, tau: float, conditional: bool
) -> Tensor:
    """Run the sampler's backward without the autograd layer."""
    with torch._C._AutoDispatchBelowAutograd():
        return _gumbel_topk_backward(grad_weights, keys, indices, tau, conditional)


@torch.library.register_fake("pyfast_nas::gumbel_topk", lib=LIB)
def _(logits, k, tau, seed, conditional, keep_keys, noise=None):
    check_gumbel_topk(logits, k, tau, seed, "shared", noise)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows, columns = logits.shape
    return (
        logits.new_empty((rows, k), dtype=dtype),
        logits.new_empty((rows, k), dtype=torch.int64),
        logits.new_empty((rows if keep_keys else 0, columns), dtype=dtype),
    )


@torch.library.register_fake("pyfast_nas::gumbel_topk_backward", lib=LIB)
def _(grad_weights, keys, indices, tau, conditional):
    return keys.new_empty(keys.shape)


@torch.library.register_fake("pyfast_nas::philox_uniform", lib=LIB)
def _(seed, first_row, rows, columns, stream):
    check_seed("philox_uniform", seed)
    check_block("philox_uniform", rows, columns, first_row, stream)
    return seed.new_empty((rows, columns), dtype=torch.float32)


def _gumbel_topk_setup(ctx, inputs, output) -> None:
    logits, _, ctx.tau, _, ctx.conditional, ctx.keeps_keys, noise = inputs
    ctx.dtypes = logits.dtype, None if noise is None else noise.dtype
    _, indices, keys = output
    ctx.mark_non_differentiable(indices)
    ctx.save_for_backward(keys, indices)


def _gumbel_topk_vjp(ctx, grad_weights, _grad_indices, grad_keys):
    if not ctx.keeps_keys:
        raise RuntimeError("gumbel_topk: keep_keys must be True where a gradient is needed")
    keys, indices = ctx.saved_tensors
    grad = _gumbel_topk_backward(grad_weights, keys, indices, ctx.tau, ctx.conditional) + grad_keys
    of_logits, of_noise = (None if dtype is None else grad.to(dtype) for dtype in ctx.dtypes)
    return of_logits, None, None, None, None, None, of_noise


def _gumbel_topk_backward_setup(ctx, inputs, output) -> None:
    *tensors, ctx.tau, ctx.conditional = inputs
    ctx.save_for_backward(*tensors)


def _gumbel_topk_backward_vjp(ctx, cotangent):
    by_grad_weights, by_keys = reference.gumbel_topk_double_backward(
        cotangent, *ctx.saved_tensors, ctx.tau, ctx.conditional
    )
    return by_grad_weights, by_keys, None, None, None


register_autograd("gumbel_topk", _gumbel_topk_vjp, _gumbel_topk_setup)
register_autograd("gumbel_topk_backward", _gumbel_topk_backward_vjp, _gumbel_topk_backward_setup)
for _name in ("gumbel_topk", "gumbel_topk_backward", "philox_uniform"):
    for _key in ("CompositeExplicitAutograd", "Batched", "FuncTorchBatched"):
        LIB.impl(_name, getattr(reference, _name), _key)


def call_fused_node(*arguments) -> tuple[Tensor, Tensor]:
    """Run the kernel of a node without the autograd layer."""
    with torch._C._AutoDispatchBelowAutograd():
        return _fused_node(*arguments)


def call_fused_node_into(place: Tensor, *arguments) -> Tensor:
    """Run the kernel of a node on a place of the caller's; return the statistics."""
    with torch._C._AutoDispatchBelowAutograd():
        return _fused_node_into(place, *arguments)


def call_fused_node_backward(*arguments) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Run the backward kernel of a node without the autograd layer."""
    with torch._C._AutoDispatchBelowAutograd():
        return _fused_node_backward(*arguments)


def call_fused_node_backward_into(
    grad_xs: Sequence[Tensor], adds: Sequence[bool], *arguments
) -> tuple[Tensor, list[Tensor]]:
    """Run the backward kernel; it writes or adds the inputs' gradients to the caller's places."""
    with torch._C._AutoDispatchBelowAutograd():
        return _fused_node_backward_into(grad_xs, adds, *arguments)


@torch.library.register_fake("pyfast_nas::fused_node", lib=LIB)
def _(xs, weights, params, given, layout, eps, strides, allow_tf32, selected=None):
    batch, _, height, columns = xs[0].shape
    width = Plan(layout, eps, strides).channels(xs[layout[0]].shape[1], params)
    size = (batch, width, -(-height // strides[0]), -(-columns // strides[0]))
    y = torch.empty(size, dtype=xs[0].dtype, device=xs[0].device, memory_format=torch.channels_last)
    return y, xs[0].new_empty((len(eps), 2, width), dtype=torch.float64)


@torch.library.register_fake("pyfast_nas::fused_node_into", lib=LIB)
def _(place, xs, weights, params, given, layout, eps, strides, allow_tf32, selected=None):
    return xs[0].new_empty((len(eps), 2, place.shape[1]), dtype=torch.float64)


def _fused_node_into_default(place: Tensor, *arguments) -> Tensor:
    y, statistics = reference_edges.planned_node(*arguments)
    place.copy_(y)
    return statistics


@torch.library.register_fake("pyfast_nas::fused_node_backward", lib=LIB)
def _fake_fused_node_backward(
    grad,
    xs,
    weights,
    params,
    statistics,
    layout,
    eps,
    strides,
    allow_tf32,
    wanted_xs,
    wants_weights,
    wanted_params,
    selected=None,
):
    return (
        [torch.empty_like(xs[i], memory_format=torch.channels_last) for i in wanted_xs],
        weights.new_empty(weights.shape[0] if wants_weights else 0),
        [params[i].new_empty(params[i].shape) for i in wanted_params],
    )


@torch.library.register_fake("pyfast_nas::fused_node_backward_into", lib=LIB)
def _(grad_xs, adds, *arguments):
    return _fake_fused_node_backward(*arguments)[1:]


def _fused_node_backward_into_default(
    grad_xs: Sequence[Tensor], adds: Sequence[int], *arguments
) -> tuple[Tensor, list[Tensor]]:
    found, of_weights, of_params = reference_edges.planned_node_backward(*arguments)
    for place, add, value in zip(grad_xs, adds, found, strict=True):
        place.copy_(place + value if add else value)
    return of_weights, of_params


LIB.impl("fused_node", reference_edges.planned_node, "CompositeExplicitAutograd")
LIB.impl("fused_node_into", _fused_node_into_default, "CompositeExplicitAutograd")
LIB.impl("fused_node_backward_into", _fused_node_backward_into_default, "CompositeExplicitAutograd")
LIB.impl("fused_node_backward", reference_edges.planned_node_backward, "CompositeExplicitAutograd")


LIB.define(
    "norm_mixed_sum(Tensor[] xs, Tensor weights, Tensor[] params, Tensor[] given, int[] kinds, "
    "float[] eps) -> (Tensor y, Tensor statistics)"
)
LIB.define(
    "norm_mixed_sum_backward(Tensor grad, Tensor[] xs, Tensor weights, Tensor[] params, "
    "Tensor statistics, int[] kinds, float[] eps, int[] wanted_xs, bool wants_weights, "
    "int[] wanted_params) -> (Tensor[], Tensor, Tensor[])"
)
_norm_mixed_sum = torch.ops.pyfast_nas.norm_mixed_sum.default
_norm_mixed_sum_backward = torch.ops.pyfast_nas.norm_mixed_sum_backward.default


def call_norm_mixed_sum(*arguments) -> tuple[Tensor, Tensor]:
    """Run the kernel without the autograd layer."""
    with torch._C._AutoDispatchBelowAutograd():
        return _norm_mixed_sum(*arguments)


def call_norm_mixed_sum_backward(*arguments) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Run the backward kernel without the autograd layer."""
    with torch._C._AutoDispatchBelowAutograd():
        return _norm_mixed_sum_backward(*arguments)


@torch.library.register_fake("pyfast_nas::norm_mixed_sum", lib=LIB)
def _(xs, weights, params, given, kinds, eps):
    dtype = torch.promote_types(xs[0].dtype, weights.dtype)
    statistics = xs[0].new_empty((len(eps), 2, xs[0].shape[1]), dtype=torch.float64)
    return torch.empty_like(xs[0], dtype=dtype), statistics


@torch.library.register_fake("pyfast_nas::norm_mixed_sum_backward", lib=LIB)
def _(grad, xs, weights, params, statistics, kinds, eps, wanted_xs, wants_weights, wanted_params):
    return (
        [torch.empty_like(xs[0]) for _ in wanted_xs],
        weights.new_empty(len(xs) if wants_weights else 0),
        [params[i].new_empty(params[i].shape) for i in wanted_params],
    )


def _norm_mixed_sum_default(xs, weights, *arguments):
    y, statistics = reference_norm.planned_norm_mixed_sum(xs, weights, *arguments)
    return _laid_out_like(xs[0], y), statistics


def _norm_mixed_sum_backward_default(grad, xs, *arguments):
    found = reference_norm.planned_norm_mixed_sum_backward(grad, xs, *arguments)
    grad_xs, grad_weights, grad_params = found
    return [_laid_out_like(xs[0], grad_x) for grad_x in grad_xs], grad_weights, grad_params


LIB.impl("norm_mixed_sum", _norm_mixed_sum_default, "CompositeExplicitAutograd")
LIB.impl("norm_mixed_sum_backward", _norm_mixed_sum_backward_default, "CompositeExplicitAutograd")
for _key in ("Batched", "FuncTorchBatched"):
    LIB.impl("norm_mixed_sum", reference_norm.planned_norm_mixed_sum, _key)
    LIB.impl("norm_mixed_sum_backward", reference_norm.planned_norm_mixed_sum_backward, _key)


# Lists of tensors. Each list comes tensor by tensor or, where `flats` has its bit, as one buffer in
# which the tensors lie as `layout` says; those that are written come first.
_PLACED = "Tensor? layout, int flats"
_FACTOR = f"{_PLACED}, float number, Tensor? scalar"
LIB.define(f"tensor_list_axpy_(Tensor(a!)[] ys, Tensor[] xs, {_FACTOR}) -> ()")
LIB.define(f"tensor_list_scale_(Tensor(a!)[] xs, {_FACTOR}) -> ()")
LIB.define(f"tensor_list_perturb_into(Tensor(a!)[] out, Tensor[] ws, Tensor[] vs, {_FACTOR}) -> ()")
LIB.define(
    f"tensor_list_difference_into(Tensor(a!)[] out, Tensor[] xs, Tensor[] ys, {_FACTOR}) -> ()"
)
LIB.define(
    f"tensor_list_neumann_step_(Tensor(a!)[] ps, Tensor(b!)[] us, Tensor[] hs, {_FACTOR}) -> ()"
)
LIB.define(
    "tensor_list_cg_step_(Tensor(a!)[] zs, Tensor(b!)[] rs, Tensor(c!)[] ps, Tensor[] hs, "
    f"{_PLACED}, Tensor(d!) state) -> ()"
)
LIB.define(
    f"tensor_list_dot(Tensor[] xs, Tensor[] ys, {_PLACED}, int finish, float radius) -> Tensor"
)


def _below_autograd(operator: Callable) -> Callable:
    def call(*arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    return call


call_axpy = _below_autograd(torch.ops.pyfast_nas.tensor_list_axpy_.default)
call_scale = _below_autograd(torch.ops.pyfast_nas.tensor_list_scale_.default)
call_perturb = _below_autograd(torch.ops.pyfast_nas.tensor_list_perturb_into.default)
call_difference = _below_autograd(torch.ops.pyfast_nas.tensor_list_difference_into.default)
call_neumann_step = _below_autograd(torch.ops.pyfast_nas.tensor_list_neumann_step_.default)
call_cg_step = _below_autograd(torch.ops.pyfast_nas.tensor_list_cg_step_.default)
call_dot = _below_autograd(torch.ops.pyfast_nas.tensor_list_dot.default)


def _axpy_default(lists, number, scalar):
    reference_tensor_list.axpy_(*lists, _times(number, scalar))


def _scale_default(lists, number, scalar):
    reference_tensor_list.scale_(*lists, _times(number, scalar))


def _perturb_default(lists, number, scalar):
    reference_tensor_list.perturb_into(*lists, _times(number, scalar))


def _difference_default(lists, number, scalar):
    divisor = 1.0 if scalar is None else scalar
    reference_tensor_list.difference_into(*lists, divisor, number)


def _neumann_step_default(lists, number, scalar):
    reference_tensor_list.neumann_step_(*lists, _times(number, scalar))


def _cg_step_default(lists, state):
    reference_tensor_list.cg_step_(*lists, state)


def _dot_default(lists, finish, radius):
    xs, ys = lists
    return reference_tensor_list.finished_dot(xs, ys or xs, finish, radius)


def _times(number: float, scalar: Tensor | None) -> float | Tensor:
    return number if scalar is None else number * scalar


def _register_lists(name: str, plain: Callable, names: Sequence[str], written: int) -> None:
    """Give an operator on lists its default, which takes buffers apart, and its fake kernel."""
    op = name.removesuffix("_into")

    def default(*arguments):
        lists, (layout, flats, *others) = arguments[: len(names)], arguments[len(names) :]
        views = [
            reference_tensor_list.views_of(tensors[0], layout) if flats >> place & 1 else tensors
            for place, tensors in enumerate(lists)
        ]
        given = [tensors for tensors in views if tensors]
        check_lists(op, names[: len(given)], given, written)
        return plain(views, *others)

    def fake(*arguments):
        for list_name, tensors in zip(names, arguments, strict=False):
            if tensors:
                check_lists(op, (list_name,), (tensors,))
        if not written:
            xs = arguments[0]
            return xs[0].new_empty((), dtype=torch.promote_types(xs[0].dtype, torch.float32))

    LIB.impl(f"tensor_list_{name}", default, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pyfast_nas::tensor_list_{name}", fake, lib=LIB)


_register_lists("axpy_", _axpy_default, ("ys", "xs"), 1)
_register_lists("scale_", _scale_default, ("xs",), 1)
_register_lists("perturb_into", _perturb_default, ("out", "ws", "vs"), 1)
_register_lists("difference_into", _difference_default, ("out", "xs", "ys"), 1)
_register_lists("neumann_step_", _neumann_step_default, ("ps", "us", "hs"), 2)
_register_lists("cg_step_", _cg_step_default, ("zs", "rs", "ps", "hs"), 3)
_register_lists("dot", _dot_default, ("xs", "ys"), 0)
