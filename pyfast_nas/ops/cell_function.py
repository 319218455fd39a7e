"""The autograd function of a fused cell: its nodes by the kernels, forward and backward."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyfast_nas.ops import _library, reference_edges
from pyfast_nas.ops.fused_node import is_batched, zeros_where
from pyfast_nas.ops.node_plan import Plan

__all__ = ["CellPlan", "record_cell", "run_cell"]


class CellPlan(NamedTuple):
    """A cell as numbers, for what lies flat: inputs, weights of each node, parameters, biases."""

    nodes: tuple[Plan, ...]
    sources: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]  # parameters of each node
    again: tuple[bool, ...]
    inputs: int
    parts: int

    def rounding(self, allow_tf32: bool) -> "CellPlan":
        """Return the plan of the same cell with products as the switch says now."""
        if self.nodes[0].allow_tf32 is allow_tf32:
            return self
        return self._replace(
            nodes=tuple(node._replace(allow_tf32=allow_tf32) for node in self.nodes)
        )

    def split(self, tensors: Sequence[Tensor]) -> tuple[list, list, list[list], list[list]]:
        """Return inputs, weights and, for each node, parameters and biases."""
        left = iter(tensors)
        inputs = [next(left) for _ in range(self.inputs)]
        weights = [next(left) for _ in self.nodes]
        params = [[next(left) for _ in range(count)] for count in self.counts]
        biases = [[next(left) for _ in range(sum(node.biased))] for node in self.nodes]
        return inputs, weights, params, biases

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


def run_cell(
    plan: CellPlan,
    given: Sequence[Tensor | None],
    selected: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    params: Sequence[Sequence[Tensor]],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return all states, the outcome behind them, and the statistics of every node."""
    states, statistics = list(inputs), []
    outcome = None
    for i, node in enumerate(plan.nodes):
        xs = [states[source] for source in plan.sources[i]]
        arguments = (xs, weights[i], params[i], given[i], *node.arguments(), selected[i])
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


def record_cell(
    plan: CellPlan,
    given: Sequence[Tensor | None],
    selected: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Run a cell so that autograd can differentiate it; return outcome and statistics."""
    return _CellFunction.apply(plan, given, selected, *tensors)


class _CellFunction(_library.DirectFunction):
    """(plan, given, selected, *inputs, *weights, *params, *biases) -> (outcome, *statistics)."""

    @staticmethod
    def forward(
        ctx,
        plan: CellPlan,
        given: Sequence[Tensor | None],
        selected: Sequence[Tensor | None],
        *tensors: Tensor,
    ):
        (*states, outcome), statistics = run_cell(plan, given, selected, *plan.split(tensors)[:3])
        ctx.plan, ctx.given = plan, tuple(t is not None for t in given)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*statistics)
        kept = [states[plan.inputs + i] for i in plan.kept()]
        # What nobody reads may be changed in place by whoever gets it.
        read = outcome if plan.reads_outcome() else None
        ctx.save_for_backward(*tensors, read, *statistics, *selected, *kept)
        return outcome, *statistics

    @staticmethod
    def backward(ctx, grad, *_grad_statistics):
        if grad is None:
            return tuple(None for _ in ctx.needs_input_grad)
        plan, needs = ctx.plan, ctx.needs_input_grad[3:]
        saved = ctx.saved_tensors
        tensors, (outcome, *rest) = saved[: len(needs)], saved[len(needs) :]
        count = len(plan.nodes)
        statistics, selected, kept = rest[:count], rest[count : 2 * count], rest[2 * count :]
        if torch.is_grad_enabled() or is_batched(grad):
            given = [s if g else None for s, g in zip(statistics, ctx.given, strict=True)]
            found = _by_reference(plan, grad, tensors, given, selected, needs)
        else:
            found = _Backward(plan, tensors, needs, outcome, statistics, selected, kept).run(grad)
        return None, None, None, *found


class _Backward:
    """Backward by the kernels, from the last node to the first."""

    def __init__(
        self,
        plan: CellPlan,
        tensors: Sequence[Tensor],
        needs: Sequence[bool],
        outcome: Tensor | None,
        statistics: Sequence[Tensor],
        selected: Sequence[Tensor | None],
        kept: Sequence[Tensor],
    ) -> None:
        self.plan, self.statistics, self.selected = plan, statistics, selected
        self.inputs, self.weights, self.params, self.biases = plan.split(tensors)
        self.needs_inputs, self.needs_weights, self.needs_params, self.needs_biases = plan.split(
            needs
        )
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
            *(xs, self.weights[i], self.params[i], self.statistics[i], *arguments),
            self.selected[i],
        )[0]

    def run(self, grad: Tensor) -> Iterator[Tensor | None]:
        """Yield the gradients in the order of the tensors, None where none is needed."""
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
        for i, of_node in enumerate(self.biases):
            reached = self.grads[first + i] is not None
            yield from zeros_where([reached and n for n in self.needs_biases[i]], of_node)

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
            self.selected[i],
        )
        of_params: list[Tensor | None] = [None] * len(needs_params)
        for p, value in zip(wanted_params, grad_params, strict=True):
            of_params[p] = value
        return grad_weights if self.needs_weights[i] else None, of_params


def _by_reference(
    plan: CellPlan,
    grad: Tensor,
    tensors: Sequence[Tensor],
    given: Sequence[Tensor | None],
    selected: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients by plain operations, differentiable in turn."""
    with torch.enable_grad():
        # One input may be computed from another: derivatives are taken at aliases of both, which
        # are not.
        aliases = [t.view_as(t) if t.requires_grad else t for t in tensors]
        states, weights, params, biases = plan.split(aliases)
        for i, node in enumerate(plan.nodes):
            candidates = node.rebuild(params[i], given[i], biases[i])
            xs = [states[source] for source in plan.sources[i]]
            y, _ = reference_edges.fused_node(xs, weights[i], candidates, node.strides, selected[i])
            states.append(y)
        outcome = torch.cat(states[-plan.parts :], dim=1)
        wanted = [alias for alias, need in zip(aliases, needs, strict=True) if need]
        # As many derivatives as the caller asked for: the graph of this one is kept for them.
        found = torch.autograd.grad(outcome, wanted, grad, create_graph=True, allow_unused=True)
    left = iter(found)
    return [next(left) if need else None for need in needs]
