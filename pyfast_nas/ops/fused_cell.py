"""A whole cell in one operator: fused nodes that read each other, side by side in the outcome.

Kept for backward are the inputs, the outcome and the batch statistics. States that are parts of the
outcome are written there and read from there; of the others those are computed again that cost
little, such as what a pointwise convolution makes of an input.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyfast_nas.ops._checks import HALVES
from pyfast_nas.ops._node_checks import check_fused_node
from pyfast_nas.ops.candidates import Candidate
from pyfast_nas.ops.cell_function import CellPlan, record_cell, run_cell
from pyfast_nas.ops.fused_node import (
    allows_tf32,
    asks_for_more,
    fused_node,
    given_statistics,
    laid_out,
    serves_fused_node,
    widened,
)
from pyfast_nas.ops.node_plan import Plan, biases_of, params_of

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
        selected: Which candidates run, as in `ops.fused_node`.
    """

    sources: tuple[int, ...]
    strides: tuple[int, ...]
    candidates: Sequence[Candidate]
    weights: Tensor
    again: bool = False
    selected: Tensor | None = None


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
        TypeError: For the reasons of `ops.fused_node`.
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
    cell = FusedCell(inputs, nodes, parts)
    return cell(inputs, [node.weights for node in nodes], [node.selected for node in nodes])


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

    __slots__ = ("_biases", "_forms", "_nodes", "_params", "_plan")

    def __init__(self, inputs: Sequence[Tensor], nodes: Sequence[Node], parts: int) -> None:
        _check_cell(inputs, nodes, parts)
        # Without what each call brings, which may belong to a graph.
        self._nodes = tuple(node._replace(weights=None, selected=None) for node in nodes)
        self._params = [list(params_of(node.candidates)) for node in nodes]
        self._biases = [bias for node in nodes for bias in biases_of(node.candidates)]
        self._forms = self._forms_of_params()
        self._plan = CellPlan(
            tuple(Plan.of(node.candidates, node.strides) for node in nodes),
            tuple(node.sources for node in nodes),
            tuple(len(of_node) for of_node in self._params),
            tuple(node.again for node in nodes),
            len(inputs),
            parts,
        )

    def _forms_of_params(self) -> list[tuple]:
        params = (p for of_node in (*self._params, self._biases) for p in of_node)
        return [(p.shape, p.dtype, p.device) for p in params]

    def holds(self) -> bool:
        """Say whether parameters have the shapes, dtypes and devices that were checked."""
        return self._forms_of_params() == self._forms

    def __call__(
        self,
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        selected: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what `fused_cell` returns."""
        plan, params = self._plan, self._params
        selected = [None] * len(self._nodes) if selected is None else list(selected)
        if inputs[0].dtype in HALVES:
            weights, params = widened(weights), [widened(of_node) for of_node in params]
        tensors = [*inputs, *weights, *(p for of_node in params for p in of_node), *self._biases]
        if (
            not serves_fused_node(inputs[0])
            or torch.compiler.is_compiling()
            or asks_for_more(tensors)
        ):
            nodes = [
                node._replace(weights=w, selected=flags)
                for node, w, flags in zip(self._nodes, weights, selected, strict=True)
            ]
            return _node_by_node(inputs, nodes, plan.parts)
        self._plan = plan = plan.rounding(allows_tf32())
        given = [given_statistics(node.candidates, inputs[0]) for node in self._nodes]
        tensors[: plan.inputs] = inputs = [laid_out(x) for x in inputs]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            y, *statistics = record_cell(plan, given, selected, tensors)
        else:
            states, statistics = run_cell(plan, given, selected, inputs, weights, params)
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
        size = check_fused_node(xs, node.weights, node.candidates, node.strides, node.selected)
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
        y, of_norms = fused_node(xs, node.weights, node.candidates, node.strides, node.selected)
        states.append(y)
        statistics.append(of_norms)
    return torch.cat(states[-parts:], dim=1), statistics
