"""Whole cells with two inputs that we did not write: all edges into a node in one fused node.

As in `pyfast_nas.nn.forms`, a form is a guess that a comparison has to confirm. A cell is guessed
where edges were found before: it is made of what they are made of.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyfast_nas.nn.cell import edge_list
from pyfast_nas.nn.forms import EdgeSum, mix
from pyfast_nas.nn.fusion import Recipes, Term, run_alone
from pyfast_nas.nn.replacement import unseen_state

__all__ = ["DARTSCell", "cell_guesses"]


@dataclasses.dataclass(frozen=True)
class DARTSCell:
    """A cell with two inputs: every node sums the mixed edges from all states before it.

    Attributes:
        container: Name of the child that holds the edges, those into the first node first.
        nodes: Number of nodes, the two inputs not among them.
        multiplier: How many of the last states are concatenated.
        aligned: Names of the children that fit the two inputs to the cell; none without them.
        strides: For each input, how much smaller the edges find it.

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 2.1.
    """

    meaning: ClassVar[str] = "the concatenation of nodes that sum its edges"

    container: str
    nodes: int
    multiplier: int
    aligned: tuple[str, ...] = ()
    strides: tuple[int, ...] = (1, 1)

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

    def fits(self, module: nn.Module, s0: Tensor, s1: Tensor) -> bool:
        """Say whether the inputs meet in one size and nobody looks at an edge."""
        sizes = [
            (x.shape[0], -(-x.shape[2] // stride), -(-x.shape[3] // stride))
            for x, stride in zip((s0, s1), self.strides, strict=True)
        ]
        edges = self.edges(module)
        return (
            sizes[0] == sizes[1]
            and len(edges) == len(edge_list(self.nodes))
            and len({len(_held(edge)) for edge in edges}) == 1
            and all(unseen_state(edge) is not None for edge in edges)
        )

    def run(
        self, module: nn.Module, s0: Tensor, s1: Tensor, weights: Tensor, recipes: Recipes
    ) -> Tensor:
        """Return the last states, along the channels."""
        layers = [module._modules[name] for name in self.aligned]
        known = [recipes.of(place, layer) for place, layer in enumerate(layers)]
        if s0 is s1 and None not in known:
            # The first cell gets the stem's output twice: in the layout of fused nodes it is kept
            # once, and none of them copies it for itself.
            s0 = s1 = s0.contiguous(memory_format=torch.channels_last)
        states = [s0, s1]
        for place, layer in enumerate(layers):
            states[place] = run_alone(layer, known[place], states[place])
        edges = [(_held(edge), unseen_state(edge).recipes) for edge in self.edges(module)]
        row = 0
        for _ in range(self.nodes):
            terms = [
                Term(source, candidate, known.of(place, candidate))
                for source, (held, known) in enumerate(edges[row : row + len(states)])
                for place, candidate in enumerate(held)
            ]
            rows = weights[row : row + len(states)]
            row += len(states)
            states.append(mix(states, terms, rows.flatten()))
        # A copy, not the nodes side by side: they are kept for backward, and a model may change in
        # place what its cell gives it, as a head that starts with ReLU(inplace=True) does.
        return torch.cat(states[-self.multiplier :], dim=1)


def cell_guesses(module: nn.Module) -> Iterator[DARTSCell]:
    """Yield the cells that fit the structure of ``module``, the likeliest first.

    Found is a list of edges, all of them replaced before, as long as a cell has them: 2, 5, 9, 14.
    Beside it the cell has two more children with something in them, one for each input, or none.

    Example:
        >>> list(cell_guesses(nn.ModuleDict({"edges": nn.ModuleList([nn.ReLU(), nn.ReLU()])})))
        []
    """
    children = {name: m for name, m in module.named_children() if not _is_empty(m)}
    for name, child in children.items():
        if not isinstance(child, nn.ModuleList | nn.ModuleDict):
            continue
        edges = list(child._modules.values())
        nodes = next(n for n in itertools.count(1) if len(edge_list(n)) >= len(edges))
        if len(edge_list(nodes)) != len(edges) or len({len(_held(edge)) for edge in edges}) != 1:
            continue
        if not _held(edges[0]):
            continue
        others = [other for other in children if other != name]
        if len(others) not in (0, 2):
            continue
        own = {v for v in vars(module).values() if type(v) is int}
        for aligned in itertools.permutations(others):
            for multiplier in sorted(
                range(1, nodes + 1), key=lambda v: (v not in own, v != nodes, -v)
            ):
                yield DARTSCell(name, nodes, multiplier, aligned)


def _held(edge: nn.Module) -> list[nn.Module]:
    """Return the candidates of an edge whose sum may be taken apart, or nothing."""
    state = unseen_state(edge, despite_hooks=True)
    if state is None or type(state.form) is not EdgeSum:
        return []
    return list(edge._modules[state.form.container]._modules.values())


def _is_empty(child: nn.Module) -> bool:
    """Say whether a child is a list that was never filled, which some models keep."""
    return isinstance(child, nn.ModuleList | nn.ModuleDict) and not len(child)
