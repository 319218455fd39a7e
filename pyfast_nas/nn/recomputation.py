r"""Gradients of the weights of candidates that did not run, from one more run of each in backward.

As the default of the ProxylessNAS code has it: forward runs one candidate of an edge, and backward,
where the gradient of the node is known, runs the candidates again to form
:math:`c_j = \langle \partial L/\partial y, o_j(x)\rangle`. No more than one of them is held at a
time. Ours: no statistics are counted in it; a candidate that draws random numbers draws those again
that it drew when it ran, so that its c belongs to the output that has made the loss.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from pyfast_nas.nn.fusion import run_alone
from pyfast_nas.nn.replay import random_states, replayed
from pyfast_nas.nn.statistics import frozen_statistics
from pyfast_nas.ops.inner_product import inner_product

if TYPE_CHECKING:
    from pyfast_nas.nn.mixed_op import MixedOp

__all__ = ["with_row_gradients"]


def with_row_gradients(
    run: Callable[[], Tensor],
    weights: Tensor,
    edges: "Sequence[MixedOp]",
    inputs: Sequence[Tensor],
    active: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    r"""Return what ``run`` gives, the sum over one candidate of each edge, with all gradients.

    The gradient of weight (e, j) is :math:`\langle \partial L/\partial y, o_{e,j}(x_e)\rangle`,
    zero for ``none``; that of the node passes unchanged. Derivatives of higher order are refused.

    What ran draws the random numbers again that it drew from torch's default generators, and leaves
    them where they are; other candidates draw new ones. While a CUDA graph is recorded nobody can
    look at the generators, and everything draws anew.

    Args:
        run: Gives the node; candidates run in their order, edge by edge.
        weights: Weights of the edges; their values are not read.
        edges: The edges into the node.
        inputs: Input of each edge.
        active: Candidates of each edge that ``run`` runs; None for all.

    Shape:
        weights ``[edges, num_ops]`` -> the shape of the node.

    Raises:
        ValueError: If there are fewer weights in a row than candidates of an edge.

    Example:
        >>> from pyfast_nas.nn import MixedOp
        >>> edge, x = MixedOp([torch.nn.Identity(), torch.nn.ReLU()]), torch.tensor([-1.0, 2.0])
        >>> weights = torch.zeros(1, 2, requires_grad=True)
        >>> with_row_gradients(lambda: x, weights, [edge], [x], [(0,)]).sum().backward()
        >>> weights.grad
        tensor([[1., 2.]])

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, eqs. 3-4.
    """
    if not (torch.is_grad_enabled() and weights.requires_grad):
        return run()
    widest = max(edge.num_ops for edge in edges)
    if weights.shape[1] < widest:
        raise ValueError(
            f"MixedOp: weights must have a column for each of {widest} candidates, "
            f"got {weights.shape[1]}"
        )
    places = _Place.all_of(edges, active)
    device = inputs[0].device
    before = random_states(device) if _can_look(device) and _may_draw(edges, places) else []
    y = run()
    has_drawn = before and not all(map(torch.equal, before, random_states(device)))
    ran = _Ran(places, before) if has_drawn else None
    return _RowGradients.apply(edges, ran, y, weights, *inputs)


class _Place(NamedTuple):
    edge: int
    index: int

    @staticmethod
    def all_of(
        edges: "Sequence[MixedOp]", active: Sequence[Sequence[int]] | None = None
    ) -> "list[_Place]":
        """Return the places of what runs, in the order in which it does; ``none`` does not."""
        chosen = [range(edge.num_ops) for edge in edges] if active is None else active
        return [
            _Place(row, index)
            for row, (edge, indices) in enumerate(zip(edges, chosen, strict=True))
            for index in indices
            if not edge.is_zero[index]
        ]


class _Ran(NamedTuple):
    """What drew random numbers as it ran, and the states that it drew them from."""

    places: list[_Place]
    states: list[Tensor]


def _may_draw(edges: "Sequence[MixedOp]", places: Sequence[_Place]) -> bool:
    """Say whether there is a candidate that is more than layers known to draw nothing."""
    recipes = (edges[place.edge].term(*place).recipe for place in places)
    return any(recipe is None or not recipe.is_replaceable() for recipe in recipes)


def _can_look(device: torch.device) -> bool:
    """Say whether the states of the generators may be asked for."""
    if torch.compiler.is_compiling():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


class _RowGradients(Function):
    """(edges, ran, y, weights, *inputs) -> y."""

    @staticmethod
    def forward(ctx, edges, ran: _Ran | None, y: Tensor, weights: Tensor, *inputs: Tensor):
        ctx.edges, ctx.ran = edges, ran
        kind = y.device.type
        ctx.autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        ctx.save_for_backward(weights, *inputs)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        weights, *inputs = ctx.saved_tensors
        nothing = [None] * len(inputs)
        if not ctx.needs_input_grad[3]:
            return None, None, grad, None, *nothing
        enabled, dtype = ctx.autocast
        found = torch.zeros_like(weights)
        with (
            torch.no_grad(),
            torch.autocast(grad.device.type, dtype, enabled),
            _frozen(ctx.edges),
        ):
            for row, products in enumerate(_products(grad, ctx.edges, inputs, ctx.ran)):
                found[row, : len(products)] = torch.stack(products)
        return None, None, grad, found, *nothing


@contextlib.contextmanager
def _frozen(edges: "Sequence[MixedOp]") -> Iterator[None]:
    """Count no statistics; in evaluation mode nothing is, and they are the running ones."""
    with contextlib.ExitStack() as stack:
        for edge in edges:
            if edge.training:
                stack.enter_context(frozen_statistics(edge))
        yield


def _products(
    grad: Tensor, edges: "Sequence[MixedOp]", inputs: Sequence[Tensor], ran: _Ran | None
) -> list[list[Tensor]]:
    """Return the gate gradients of each edge; candidates run, and are freed, one by one."""
    nothing = grad.new_zeros((), dtype=torch.promote_types(grad.dtype, torch.float32))
    found = [[nothing] * edge.num_ops for edge in edges]

    def run(places: Sequence[_Place]) -> None:
        for row, index in places:
            _, module, recipe = edges[row].term(row, index)
            found[row][index] = inner_product(grad, run_alone(module, recipe, inputs[row]))

    first = [] if ran is None else ran.places
    if first:
        with replayed(ran.states, grad.device):
            run(first)
    run([place for place in _Place.all_of(edges) if place not in first])
    return found
