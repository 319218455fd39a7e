r"""Gradients of the weights of candidates that did not run, from one more run of each in backward.

As the default of the ProxylessNAS code has it: forward runs one candidate of an edge, and backward,
where the gradient of the node is known, runs the candidates again to form
:math:`c_j = \langle \partial L/\partial y, o_j(x)\rangle`. No more than one of them is held at a
time. Ours: no statistics are counted in it.
"""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pyfast_nas.nn.fusion import run_alone
from pyfast_nas.nn.statistics import frozen_statistics
from pyfast_nas.ops.inner_product import inner_product

if TYPE_CHECKING:
    from pyfast_nas.nn.mixed_op import MixedOp

__all__ = ["with_row_gradients"]


def with_row_gradients(
    y: Tensor, weights: Tensor, edges: "Sequence[MixedOp]", inputs: Sequence[Tensor]
) -> Tensor:
    r"""Return ``y``, the sum that one candidate of each edge gave, with a gradient for all weights.

    The gradient of weight (e, j) is :math:`\langle \partial L/\partial y, o_{e,j}(x_e)\rangle`,
    zero for ``none``; that of ``y`` passes unchanged. Derivatives of higher order are refused.

    Args:
        y: The node.
        weights: Weights of the edges; their values are not read.
        edges: The edges into the node.
        inputs: Input of each edge.

    Shape:
        weights ``[edges, num_ops]``, y any shape -> the shape of y.

    Raises:
        ValueError: If there are fewer weights in a row than candidates of an edge.

    Example:
        >>> from pyfast_nas.nn import MixedOp
        >>> edge, x = MixedOp([torch.nn.Identity(), torch.nn.ReLU()]), torch.tensor([-1.0, 2.0])
        >>> weights = torch.zeros(1, 2, requires_grad=True)
        >>> with_row_gradients(x, weights, [edge], [x]).sum().backward()
        >>> weights.grad
        tensor([[1., 2.]])

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, eqs. 3-4.
    """
    if not (torch.is_grad_enabled() and weights.requires_grad):
        return y
    widest = max(edge.num_ops for edge in edges)
    if weights.shape[1] < widest:
        raise ValueError(
            f"MixedOp: weights must have a column for each of {widest} candidates, "
            f"got {weights.shape[1]}"
        )
    return _RowGradients.apply(edges, y, weights, *inputs)


class _RowGradients(Function):
    """(edges, y, weights, *inputs) -> y."""

    @staticmethod
    def forward(ctx, edges, y: Tensor, weights: Tensor, *inputs: Tensor) -> Tensor:
        ctx.edges = edges
        kind = y.device.type
        ctx.autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        ctx.save_for_backward(weights, *inputs)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        weights, *inputs = ctx.saved_tensors
        nothing = [None] * len(inputs)
        if not ctx.needs_input_grad[2]:
            return None, grad, None, *nothing
        enabled, dtype = ctx.autocast
        with torch.no_grad(), torch.autocast(grad.device.type, dtype, enabled):
            rows = [_row(grad, *pair) for pair in zip(ctx.edges, inputs, strict=True)]
        found = torch.zeros_like(weights)
        for row, values in zip(found, rows, strict=True):
            row[: len(values)] = values
        return None, grad, found, *nothing


def _row(grad: Tensor, edge: "MixedOp", x: Tensor) -> Tensor:
    """Return the gate gradients of one edge; candidates run, and are freed, one by one."""
    # In evaluation mode nothing is counted, and the statistics are the running ones.
    frozen = frozen_statistics(edge) if edge.training else contextlib.nullcontext()
    products = []
    with frozen:
        for index in range(edge.num_ops):
            if edge.is_zero[index]:
                products.append(
                    grad.new_zeros((), dtype=torch.promote_types(grad.dtype, torch.float32))
                )
            else:
                _, module, recipe = edge.term(0, index)
                products.append(inner_product(grad, run_alone(module, recipe, x)))
    return torch.stack(products)
