"""Whole cells made of edges that we did not write: all edges into a node in one fused node.

As in `pyfast_nas.nn.forms`, a form is a guess that a comparison has to confirm. A cell is guessed
where edges were found before: it is made of what they are made of.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyfast_nas.nn.forms import EdgeSum, mix, run_whole
from pyfast_nas.nn.fusion import Recipes, Sum, Term, run_alone
from pyfast_nas.nn.replacement import unseen_state

__all__ = ["EdgeCell", "cell_guesses"]


@dataclasses.dataclass(frozen=True)
class EdgeCell:
    """A cell with one or two inputs: every node sums the mixed edges from all states before it.

    Attributes:
        container: Name of the child that holds the edges, those into the first node first.
        nodes: Number of nodes, the inputs not among them.
        multiplier: How many of the last states are concatenated.
        strides: For each input, how much smaller the edges find it.
        aligned: Names of the children that fit the inputs to the cell; none without them.

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 2.1.
        Dong & Yang, "NAS-Bench-201", ICLR 2020, section 2.1.
    """

    meaning: ClassVar[str] = "the concatenation of nodes that sum its edges"

    container: str
    nodes: int
    multiplier: int
    strides: tuple[int, ...]
    aligned: tuple[str, ...] = ()

    def edges(self, module: nn.Module) -> list[nn.Module]:
        """Return the edges, those into the first node first."""
        return list(module._modules[self.container]._modules.values())

    def candidates(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return what has a recipe of the cell's own: the edges have those of their candidates."""
        return {name: module._modules[name] for name in self.aligned}

    def shape(self, module: nn.Module) -> tuple[int, ...]:
        """Return ``[edges, candidates]``."""
        edges = self.edges(module)
        return len(edges), len(_held(edges[0])) if edges else 0

    def fits(self, module: nn.Module, *xs: Tensor) -> bool:
        """Say whether the inputs meet in one size and nobody looks at an edge."""
        sizes = {
            (x.shape[0], -(-x.shape[2] // stride), -(-x.shape[3] // stride))
            for x, stride in zip(xs, self.strides, strict=True)
        }
        edges = self.edges(module)
        return (
            len(sizes) == 1
            and len(edges) == _edge_count(len(xs), self.nodes)
            and len({len(_held(edge)) for edge in edges}) == 1
            and all(unseen_state(edge) is not None for edge in edges)
        )

    def run(self, module: nn.Module, *arguments: Tensor | Recipes) -> Tensor:
        """Return the last states, along the channels."""
        *xs, weights, recipes = arguments
        layers = [module._modules[name] for name in self.aligned]
        known = [recipes.of(place, layer) for place, layer in enumerate(layers)]
        if len(xs) == 2 and xs[0] is xs[1] and None not in known:
            # The first cell gets the stem's output twice: in the layout of fused nodes it is kept
            # once, and none of them copies it for itself.
            xs = [xs[0].contiguous(memory_format=torch.channels_last)] * 2
        # By place in the list of states: the inputs, what fits them to the cell, the nodes.
        first = list(range(len(xs)))
        fitted: list[Sum] = []
        for place, (layer, recipe) in enumerate(zip(layers, known, strict=True)):
            if recipe is None or not recipe.is_replaceable():
                xs[place] = layer(xs[place])
            else:
                first[place] = len(xs) + len(fitted)
                # One convolution: it costs less to run it again than to keep what it gives.
                alone = Term(place, layer, recipe)
                fitted.append(Sum([alone], xs[place].new_ones(1), again=True))
        sums = list(self._sums(module, weights, first, len(xs) + len(fitted)))
        if self.multiplier == 1:
            whole = run_whole(xs, [*fitted, *sums])
            if whole is not None:
                return whole
        states = list(xs)
        for ((place, layer, recipe),), *_ in fitted:
            states.append(run_alone(layer, recipe, xs[place]))
        for terms, of_node, _ in sums:
            states.append(mix(states, terms, of_node))
        # A copy, not the nodes side by side: they are kept for backward, and a model may change in
        # place what its cell gives it, as a head that starts with ReLU(inplace=True) does.
        return torch.cat(states[-self.multiplier :], dim=1)

    def _sums(
        self, module: nn.Module, weights: Tensor, first: Sequence[int], row: int
    ) -> Iterator[Sum]:
        """Yield the nodes.

        Args:
            module: The cell.
            weights: A row for each edge.
            first: Places of the states that the edges read before any node is there.
            row: Place of the first node.
        """
        edges = [(_held(edge), unseen_state(edge).recipes) for edge in self.edges(module)]
        sources, taken = list(first), 0
        for node in range(self.nodes):
            rows = slice(taken, taken + len(sources))
            terms = [
                Term(source, candidate, known.of(place, candidate))
                for source, (held, known) in zip(sources, edges[rows], strict=True)
                for place, candidate in enumerate(held)
            ]
            yield Sum(terms, weights[rows].flatten())
            taken += len(sources)
            sources.append(row + node)


def cell_guesses(module: nn.Module) -> Iterator[EdgeCell]:
    """Yield the cells that fit the structure of ``module``, the likeliest first.

    Found is a list of edges, all of them replaced before, as long as a cell has them: 1, 3, 6, 10
    with one input, 2, 5, 9, 14 with two. Beside it the cell has one more child with something in it
    for each input, or none.

    Example:
        >>> list(cell_guesses(nn.ModuleDict({"edges": nn.ModuleList([nn.ReLU(), nn.ReLU()])})))
        []
    """
    children = {name: m for name, m in module.named_children() if not _is_empty(m)}
    for name, child in children.items():
        if not isinstance(child, nn.ModuleList | nn.ModuleDict):
            continue
        edges = list(child._modules.values())
        if len({len(_held(edge)) for edge in edges}) != 1 or not _held(edges[0]):
            continue
        found = _inputs_and_nodes(len(edges))
        others = [other for other in children if other != name]
        if found is None or len(others) not in (0, found[0]):
            continue
        inputs, nodes = found
        own = {v for v in vars(module).values() if type(v) is int}
        usual = 1 if inputs == 1 else nodes
        for aligned in itertools.permutations(others):
            for multiplier in sorted(
                range(1, nodes + 1), key=lambda v: (v not in own, v != usual, -v)
            ):
                yield EdgeCell(name, nodes, multiplier, (1,) * inputs, aligned)


def _edge_count(inputs: int, nodes: int) -> int:
    return sum(range(inputs, inputs + nodes))


def _inputs_and_nodes(edges: int) -> tuple[int, int] | None:
    """Return the only numbers of inputs and nodes that a cell of so many edges can have."""
    for inputs in (1, 2):
        nodes = next(n for n in itertools.count(1) if _edge_count(inputs, n) >= edges)
        if _edge_count(inputs, nodes) == edges:
            return inputs, nodes
    return None


def _held(edge: nn.Module) -> list[nn.Module]:
    """Return the candidates of an edge whose sum may be taken apart, or nothing."""
    state = unseen_state(edge, despite_hooks=True)
    if state is None or type(state.form) is not EdgeSum:
        return []
    return list(edge._modules[state.form.container]._modules.values())


def _is_empty(child: nn.Module) -> bool:
    """Say whether a child is a list that was never filled, which some models keep."""
    return isinstance(child, nn.ModuleList | nn.ModuleDict) and not len(child)
