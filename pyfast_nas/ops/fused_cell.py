"""A whole cell in one operator: fused nodes that read each other, side by side in the outcome.

Kept for backward are the inputs, the outcome and the batch statistics. States that are parts of the
outcome are written there and read from there; of the others those are computed again that cost
little, such as what a pointwise convolution makes of an input.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyfast_nas.ops import _library, reference_edges
from pyfast_nas.ops._node_checks import check_fused_node
from pyfast_nas.ops.candidates import Candidate
from pyfast_nas.ops.fused_node import (
    asks_for_more,
    fused_node,
    given_statistics,
    is_batched,
    laid_out,
    serves_fused_node,
)
from pyfast_nas.ops.node_plan import Plan, params_of

__all__ = ["FusedCell", "Node", "fused_cell"]


class Node(NamedTuple):
    """One node of a cell.

    Attributes:
        sources: State that each of its edges reads: the inputs of the cell come first, then the
            nodes in their order.
        strides: 1 or 2 for each edge.
        candidates: What it sums, as in `ops.fused_node`.
        weights: Mixing weight of each candidate.
        again: Whether backward computes its state again, rather than keeping it.
    """

    sources: tuple[int, ...]
    strides: tuple[int, ...]
    candidates: Sequence[Candidate]
    weights: Tensor
    again: bool = False


def fused_cell(
    inputs: Sequence[Tensor], nodes: Sequence[Node], parts: int
) -> tuple[Tensor, list[Tensor]]:
    """Run nodes one after another and return the last of them side by side.

    The same as `ops.fused_node` for each node and a concatenation along the channels, with less
    memory and without its copies. Derivatives are those of `ops.fused_node`.

    Args:
        inputs: What the nodes may read, as `ops.fused_node` takes it.
        nodes: At least ``parts`` of them, each reading what stands before it.
        parts: How many of the last nodes the outcome holds; they are of one shape.

    Returns:
        The outcome, channels-last, and for each node the statistics of its batch norms.

    Shape:
        each input ``[N, C, H, W]`` -> outcome ``[N, parts * C_out, H_out, W_out]``, statistics
        ``[norms, 2, C]`` for each node.

    Raises:
        TypeError: If a tensor is not of the dtype of ``inputs[0]``.
        ValueError: If a node reads what is not there, or for the reasons of `ops.fused_node`.

    Example:
        >>> x = torch.ones(2, 3, 4, 4)
        >>> twice = Node((0,), (1,), [Candidate("skip", 0)], torch.tensor([2.0]))
        >>> y, _ = fused_cell([x], [twice, twice._replace(sources=(1,))], parts=2)
        >>> y[0, :, 0, 0].tolist()
        [2.0, 2.0, 2.0, 4.0, 4.0, 4.0]

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 2.1.
    """
    return FusedCell(inputs, nodes, parts)(inputs, [node.weights for node in nodes])


class FusedCell:
    """A cell that has been checked, to be run with other inputs and weights of the same shapes.

    Args:
        inputs: Tensors like the inputs of the cell; their values are not read.
        nodes: As in `fused_cell`.
        parts: As in `fused_cell`.

    Raises:
        TypeError: As `fused_cell`.
        ValueError: As `fused_cell`.

    Example:
        >>> x = torch.ones(2, 3, 4, 4)
        >>> cell = FusedCell([x], [Node((0,), (1,), [Candidate("skip", 0)], torch.ones(1))], 1)
        >>> y, _ = cell([x], [torch.tensor([3.0])])
        >>> float(y[0, 0, 0, 0])
        3.0
    """

    __slots__ = ("_forms", "_nodes", "_params", "_plan")

    def __init__(self, inputs: Sequence[Tensor], nodes: Sequence[Node], parts: int) -> None:
        _check_cell(inputs, nodes, parts)
        # Without the weights, which may belong to a graph.
        self._nodes = tuple(node._replace(weights=None) for node in nodes)
        self._params = [list(params_of(node.candidates)) for node in nodes]
        self._forms = self._forms_of_params()
        self._plan = _CellPlan(
            tuple(Plan.of(node.candidates, node.strides) for node in nodes),
            tuple(node.sources for node in nodes),
            tuple(len(of_node) for of_node in self._params),
            tuple(node.again for node in nodes),
            len(inputs),
            parts,
        )

    def _forms_of_params(self) -> list[tuple]:
        return [(p.shape, p.dtype, p.device) for of_node in self._params for p in of_node]

    def holds(self) -> bool:
        """Say whether parameters have the shapes, dtypes and devices that were checked."""
        return self._forms_of_params() == self._forms

    def __call__(
        self, inputs: Sequence[Tensor], weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what `fused_cell` returns."""
        plan, params = self._plan, self._params
        tensors = [*inputs, *weights, *(p for of_node in params for p in of_node)]
        if (
            not serves_fused_node(inputs[0])
            or torch.compiler.is_compiling()
            or asks_for_more(tensors)
        ):
            nodes = [node._replace(weights=w) for node, w in zip(self._nodes, weights, strict=True)]
            return _node_by_node(inputs, nodes, plan.parts)
        given = [given_statistics(node.candidates, inputs[0]) for node in self._nodes]
        tensors[: plan.inputs] = inputs = [laid_out(x) for x in inputs]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            y, *statistics = _FusedCell.apply(plan, given, *tensors)
        else:
            states, statistics = _run(plan, given, inputs, weights, params)
            y = states[-1]
        return y, statistics


def _check_cell(inputs: Sequence[Tensor], nodes: Sequence[Node], parts: int) -> None:
    """Refuse what a node cannot serve, before any of them runs."""
    if not inputs:
        raise ValueError("fused_cell: inputs must hold at least one tensor, got 0")
    if not 1 <= parts <= len(nodes):
        raise ValueError(f"fused_cell: parts must be from 1 to {len(nodes)}, got {parts}")
    for index, node in enumerate(nodes):
        before = len(inputs) + index
        if any(source not in range(before) for source in node.sources):
            raise ValueError(
                f"fused_cell: nodes[{index}].sources must be from 0 to {before - 1}, "
                f"got {node.sources}"
            )
    states = list(inputs)
    for node in nodes:
        xs = [states[source] for source in node.sources]
        size = check_fused_node(xs, node.weights, node.candidates, node.strides)
        states.append(inputs[0].new_empty(()).expand(size))
    sizes = {state.shape for state in states[-parts:]}
    if len(sizes) > 1:
        raise ValueError(
            f"fused_cell: the last {parts} nodes must give one shape, "
            f"got {sorted(map(list, sizes))}"
        )


def _node_by_node(
    inputs: Sequence[Tensor], nodes: Sequence[Node], parts: int
) -> tuple[Tensor, list[Tensor]]:
    states, statistics = list(inputs), []
    for node in nodes:
        xs = [states[source] for source in node.sources]
        y, of_norms = fused_node(xs, node.weights, node.candidates, node.strides)
        states.append(y)
        statistics.append(of_norms)
    return torch.cat(states[-parts:], dim=1), statistics


class _CellPlan(NamedTuple):
    """A cell as numbers, for what lies flat: inputs, a weight vector per node, parameters."""

    nodes: tuple[Plan, ...]
    sources: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]  # parameters of each node
    again: tuple[bool, ...]
    inputs: int
    parts: int

    def split(self, tensors: Sequence[Tensor]) -> tuple[list, list, list[list]]:
        """Return inputs, weights and, for each node, parameters."""
        left = iter(tensors)
        inputs = [next(left) for _ in range(self.inputs)]
        weights = [next(left) for _ in self.nodes]
        return inputs, weights, [[next(left) for _ in range(count)] for count in self.counts]

    def part(self, node: int) -> int:
        """Return which part of the outcome a node is; negative for none."""
        return node - (len(self.nodes) - self.parts)

    def reads_outcome(self) -> bool:
        """Say whether a node reads a state that is a part of the outcome."""
        first = self.inputs + len(self.nodes) - self.parts
        return any(source >= first for sources in self.sources for source in sources)

    def kept(self) -> list[int]:
        """Return the nodes whose states are kept as they are."""
        return [i for i, again in enumerate(self.again) if self.part(i) < 0 and not again]


def _slice(whole: Tensor, part: int, parts: int) -> Tensor:
    """Return one of equal parts along the channels, as a tensor that autograd takes for no view."""
    width = whole.shape[1] // parts
    with torch._C._AutoDispatchBelowAutograd():
        return whole.narrow(1, part * width, width)


def _run(
    plan: _CellPlan,
    given: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    params: Sequence[Sequence[Tensor]],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return all states, the outcome behind them, and the statistics of every node."""
    states, statistics = list(inputs), []
    outcome = None
    for i, node in enumerate(plan.nodes):
        xs = [states[source] for source in plan.sources[i]]
        arguments = (xs, weights[i], params[i], given[i], *node.arguments())
        part = plan.part(i)
        if part < 0:
            y, of_norms = _library.call_fused_node(*arguments)
        else:
            if outcome is None:
                outcome = _new_outcome(xs, node, params[i], plan.parts)
            y = _slice(outcome, part, plan.parts)
            of_norms = _library.call_fused_node_into(y, *arguments)
        states.append(y)
        statistics.append(of_norms)
    return [*states, outcome], statistics


def _new_outcome(xs: Sequence[Tensor], node: Plan, params: Sequence[Tensor], parts: int) -> Tensor:
    samples, _, height, width = xs[0].shape
    stride = node.strides[0]
    channels = node.channels(xs[node.layout[0]].shape[1], params)
    return torch.empty(
        (samples, parts * channels, -(-height // stride), -(-width // stride)),
        dtype=xs[0].dtype,
        device=xs[0].device,
        memory_format=torch.channels_last,
    )


class _FusedCell(_library.DirectFunction):
    """(plan, given, *inputs, *weights, *params) -> (outcome, *statistics)."""

    @staticmethod
    def forward(ctx, plan: _CellPlan, given: Sequence[Tensor | None], *tensors: Tensor):
        (*states, outcome), statistics = _run(plan, given, *plan.split(tensors))
        ctx.plan, ctx.given = plan, tuple(t is not None for t in given)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*statistics)
        kept = [states[plan.inputs + i] for i in plan.kept()]
        # What nobody reads may be changed in place by whoever gets it.
        read = outcome if plan.reads_outcome() else None
        ctx.save_for_backward(*tensors, read, *statistics, *kept)
        return outcome, *statistics

    @staticmethod
    def backward(ctx, grad, *_grad_statistics):
        if grad is None:
            return None, None, *(None for _ in ctx.needs_input_grad[2:])
        plan, needs = ctx.plan, ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors
        tensors, (outcome, *rest) = saved[: len(needs)], saved[len(needs) :]
        statistics, kept = rest[: len(plan.nodes)], rest[len(plan.nodes) :]
        if torch.is_grad_enabled() or is_batched(grad):
            given = [s if g else None for s, g in zip(statistics, ctx.given, strict=True)]
            return None, None, *_by_reference(plan, grad, tensors, given, needs)
        return None, None, *_Backward(plan, tensors, needs, outcome, statistics, kept).run(grad)


class _Backward:
    """Backward by the kernels, from the last node to the first."""

    def __init__(
        self,
        plan: _CellPlan,
        tensors: Sequence[Tensor],
        needs: Sequence[bool],
        outcome: Tensor | None,
        statistics: Sequence[Tensor],
        kept: Sequence[Tensor],
    ) -> None:
        self.plan, self.statistics = plan, statistics
        self.inputs, self.weights, self.params = plan.split(tensors)
        self.needs_inputs, self.needs_weights, self.needs_params = plan.split(needs)
        self.states = list(self.inputs)
        kept_states = iter(kept)
        for i in range(len(plan.nodes)):
            part = plan.part(i)
            if part >= 0:
                is_read = outcome is not None
                self.states.append(_slice(outcome, part, plan.parts) if is_read else None)
            elif plan.again[i]:
                self.states.append(self._again(i))
            else:
                self.states.append(next(kept_states))

    def _again(self, i: int) -> Tensor:
        """Compute a state again, with the statistics that it had."""
        arguments = self.plan.nodes[i].with_given_statistics().arguments()
        xs = [self.states[source] for source in self.plan.sources[i]]
        return _library.call_fused_node(
            xs, self.weights[i], self.params[i], self.statistics[i], *arguments
        )[0]

    def run(self, grad: Tensor) -> Iterator[Tensor | None]:
        """Yield the gradients of inputs, weights and parameters, None where none is needed."""
        plan, first = self.plan, self.plan.inputs
        # A copy: gradients of the parts are added to it.
        whole = grad.clone(memory_format=torch.channels_last)
        # By state: its gradient so far, None for none.
        self.grads: list[Tensor | None] = [None] * len(self.states)
        for i in range(len(plan.nodes)):
            if (part := plan.part(i)) >= 0:
                self.grads[first + i] = _slice(whole, part, plan.parts)
        of_weights: list[Tensor | None] = [None] * len(plan.nodes)
        of_params: list[list[Tensor | None]] = [[None] * count for count in plan.counts]
        for i in reversed(range(len(plan.nodes))):
            if self.grads[first + i] is not None:
                of_weights[i], of_params[i] = self._node(i)
            elif self.needs_weights[i]:
                of_weights[i] = torch.zeros_like(self.weights[i])
        yield from (
            grad if need else None
            for grad, need in zip(self.grads[:first], self.needs_inputs, strict=True)
        )
        yield from of_weights
        yield from (value for of_node in of_params for value in of_node)

    def _node(self, i: int) -> tuple[Tensor | None, list[Tensor | None]]:
        """Hand the gradient of a node on to what it reads; return those of weights, parameters."""
        plan = self.plan
        sources, needs_params = plan.sources[i], self.needs_params[i]
        wanted = [
            edge
            for edge, source in enumerate(sources)
            if source >= plan.inputs or self.needs_inputs[source]
        ]
        places, adds = [], []
        for edge in wanted:
            state = sources[edge]
            adds.append(self.grads[state] is not None)
            if self.grads[state] is None:
                self.grads[state] = torch.empty_like(
                    self.states[state], memory_format=torch.channels_last
                )
            places.append(self.grads[state])
        wanted_params = [p for p, need in enumerate(needs_params) if need]
        grad_weights, grad_params = _library.call_fused_node_backward_into(
            places,
            adds,
            self.grads[plan.inputs + i],
            [self.states[source] for source in sources],
            self.weights[i],
            self.params[i],
            self.statistics[i],
            *plan.nodes[i].arguments(),
            wanted,
            self.needs_weights[i],
            wanted_params,
        )
        of_params: list[Tensor | None] = [None] * len(needs_params)
        for p, value in zip(wanted_params, grad_params, strict=True):
            of_params[p] = value
        return grad_weights if self.needs_weights[i] else None, of_params


def _by_reference(
    plan: _CellPlan,
    grad: Tensor,
    tensors: Sequence[Tensor],
    given: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients by plain operations, differentiable in turn."""
    with torch.enable_grad():
        # One input may be computed from another: derivatives are taken at aliases of both, which
        # are not.
        aliases = [t.view_as(t) if t.requires_grad else t for t in tensors]
        states, weights, params = plan.split(aliases)
        for i, node in enumerate(plan.nodes):
            means = None if given[i] is None else given[i].to(grad.dtype)
            candidates = node.rebuild(params[i], means)
            xs = [states[source] for source in plan.sources[i]]
            states.append(reference_edges.fused_node(xs, weights[i], candidates, node.strides)[0])
        outcome = torch.cat(states[-plan.parts :], dim=1)
        wanted = [alias for alias, need in zip(aliases, needs, strict=True) if need]
        # As many derivatives as the caller asked for: the graph of this one is kept for them.
        found = torch.autograd.grad(outcome, wanted, grad, create_graph=True, allow_unused=True)
    left = iter(found)
    return [next(left) if need else None for need in needs]
