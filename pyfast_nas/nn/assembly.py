"""A whole cell as one operator, put together once and used as long as nothing in it has changed.

To find out what each candidate computes, and to check it, takes as long as the arithmetic of a
small cell; to see that it is still the same takes little.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyfast_nas import ops
from pyfast_nas.nn.fusion import (
    FusedCall,
    Recipes,
    Sum,
    Term,
    index_of,
    is_served,
    plan_cell,
    zero_places,
)
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.mixed_op import MixedOp, factors_of, places_of
from pyfast_nas.nn.recipes import Recipe

__all__ = ["Assembly"]


class Assembly:
    """Runs cells of one structure; a copy puts the cell together again.

    It is kept as it was put together for the last two kinds of call: passes of the architecture
    and of the weights take turns, and differ where batch norms track statistics.

    Args:
        recipes: Those of the layers that fit the inputs to the cell.
    """

    __slots__ = ("_made", "_recipes")

    def __init__(self, recipes: Recipes) -> None:
        self._recipes = recipes
        self._made: tuple[_Made, ...] = ()

    def run(
        self,
        layers: Sequence[nn.Module],
        rows: Sequence[Sequence[MixedOp]],
        inputs: Sequence[Tensor],
        gate: GateOutput,
        parts: int,
    ) -> Tensor | None:
        """Return the outcome of a cell, or None where some of it has to run as a plain module.

        Args:
            layers: What each input goes through first; none where they fit as they are.
            rows: For each node its edges, one from every state before it.
            inputs: The inputs of the cell.
            gate: Weights of all edges, row by row.
            parts: How many of the last nodes the outcome holds.
        """
        if gate.recompute:
            return None  # asks for the gradient of every node
        if parts > len(rows) or not all(is_served(x, gate.weights) for x in inputs):
            return None
        if gate.shift is not None:
            return None  # added to each node
        holders = _holders(layers, rows)
        for made in self._made:
            if made.holds(holders, inputs, gate):
                return made.run(inputs, gate)
        # What is kept may be called for gradients later on.
        with torch.inference_mode(False):
            made = self._make(holders, layers, rows, inputs, gate, parts)
        if made is None:
            return None
        self._made = (made, *self._made[:1])
        return made.run(inputs, gate)

    def _make(
        self,
        holders: Sequence[dict],
        layers: Sequence[nn.Module],
        rows: Sequence[Sequence[MixedOp]],
        inputs: Sequence[Tensor],
        gate: GateOutput,
        parts: int,
    ) -> "_Made | None":
        if zero_places(gate.weights.flatten()):
            return None  # what is idle is for the single nodes to tell
        # Tensors like the inputs: what is put together here holds on to no value.
        like = [x.new_empty(()).expand(x.shape) for x in inputs]
        one = inputs[0].new_ones(1)
        # One convolution each: it costs less to run it again than to keep what it gives.
        sums = [
            Sum([Term(place, layer, self._recipes.of(place, layer))], one, again=True)
            for place, layer in enumerate(layers)
        ]
        positions = []
        row = 0
        for edges in rows:
            found, where = places_of(edges, gate, row)
            terms = [edges[edge].term(len(layers) + edge, k) for edge, k in found]
            sums.append(Sum(terms, one.expand(len(terms))))
            positions.append(where)
            row += len(edges)
        planned = plan_cell(like, sums)
        if planned is None:
            return None
        calls, nodes = planned
        places = [
            [where[k] for k in call.places]
            for call, where in zip(calls[len(layers) :], positions, strict=True)
        ]
        cell = ops.FusedCell(like, nodes, parts)
        return _Made.of(holders, inputs, gate, cell, calls, places, one)

    def __reduce__(self) -> tuple:
        return Assembly, (self._recipes,)


class _Made(NamedTuple):
    """A cell that was put together, and all that it depends on."""

    key: tuple
    children: tuple[tuple[nn.Module, ...], ...]
    recipes: tuple[tuple[Recipe, tuple], ...]
    cell: ops.FusedCell
    calls: tuple[FusedCall, ...]
    where: Tensor  # the weights of all nodes in the flattened table
    counts: tuple[int, ...]
    one: Tensor

    @classmethod
    def of(
        cls,
        holders: Sequence[dict],
        inputs: Sequence[Tensor],
        gate: GateOutput,
        cell: ops.FusedCell,
        calls: Sequence[FusedCall],
        places: Sequence[Sequence[int]],
        one: Tensor,
    ) -> "_Made":
        recipes = [recipe for call in calls for recipe in call.recipes]
        where = [place for node in places for place in node]
        return cls(
            _key(inputs, gate),
            tuple(tuple(holder.values()) for holder in holders),
            tuple((recipe, recipe.state()) for recipe in recipes),
            cell,
            tuple(calls),
            index_of(tuple(where), gate.weights.device),
            tuple(map(len, places)),
            one,
        )

    def holds(self, holders: Sequence[dict], inputs: Sequence[Tensor], gate: GateOutput) -> bool:
        """Say whether the cell is still what it was when it was put together."""
        return (
            _key(inputs, gate) == self.key
            and not torch._C._are_functorch_transforms_active()
            and all(map(_is_child, holders, self.children))
            and not zero_places(gate.weights.flatten())
            and self.cell.holds()
            and all(
                recipe.is_intact()
                and recipe.is_replaceable()
                and all(map(operator.is_, recipe.state(), before))
                for recipe, before in self.recipes
            )
        )

    def run(self, inputs: Sequence[Tensor], gate: GateOutput) -> Tensor:
        """Return the outcome, and move the running statistics."""
        weights = factors_of(gate.weights.flatten()[self.where], gate.straight_through)
        first = [self.one] * (len(self.calls) - len(self.counts))
        selected: list[Tensor | None] = [None] * len(self.calls)
        if gate.selected is not None:
            flags = gate.selected.flatten()[self.where]
            selected[len(first) :] = flags.split(self.counts)
        y, statistics = self.cell(inputs, [*first, *weights.split(self.counts)], selected)
        for call, of_norms, flags in zip(self.calls, statistics, selected, strict=True):
            call.track(of_norms, flags)
        return y


def _holders(
    layers: Sequence[nn.Module], rows: Iterable[Sequence[MixedOp]]
) -> list[dict[str, nn.Module]]:
    """Return where every module of a cell is held, down to the candidates."""
    held: list[dict] = [dict(enumerate(layers))]
    for edges in rows:
        for edge in edges:
            held += (edge._modules, edge.candidates._modules)
    return held


def _is_child(holder: dict[str, nn.Module], before: tuple[nn.Module, ...]) -> bool:
    return tuple(holder.values()) == before


def _key(inputs: Sequence[Tensor], gate: GateOutput) -> tuple:
    """Return what tells one kind of call from another."""
    return (
        tuple((x.shape, x.dtype, x.device) for x in inputs),
        (gate.weights.shape, gate.active, gate.straight_through, gate.selected is None),
    )
