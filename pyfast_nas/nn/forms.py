"""What the ``forward(x, weights)`` of a module that we did not write may compute.

A form is a guess that fits the structure. Whether it is right is for a comparison to tell; see
`pyfast_nas.nn.verification`. Cells that are made of such modules are in `pyfast_nas.nn.cell_forms`.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from pyfast_nas import ops
from pyfast_nas.nn.fusion import Recipes, Sum, Term, chosen, gather, plan_cell

__all__ = [
    "CellSum",
    "EdgeSum",
    "Form",
    "PartialSum",
    "guesses",
    "mix",
    "parameters_of_forward",
    "run_whole",
]


class Form(Protocol):
    """A way in which a module may sum its candidates.

    Attributes:
        meaning: What it computes, in words.
        strides: For each input, how much smaller than it the edges find it.
    """

    meaning: str
    strides: tuple[int, ...]

    def candidates(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the candidates by their name inside ``module``, in the order of their places."""

    def shape(self, module: nn.Module) -> tuple[int, ...]:
        """Return the shape of the weights."""

    def fits(self, module: nn.Module, *xs: Tensor) -> bool:
        """Say whether ``run`` does for these inputs what it did when it was compared."""

    def run(self, module: nn.Module, *arguments: Tensor | Recipes) -> Tensor:
        """Compute what the module's own ``forward`` is taken to compute.

        Args:
            module: The module.
            *arguments: Its inputs, the weights, and the recipes of the candidates.
        """


class _OneInput:
    """What forms have in common that read one input as it is."""

    meaning: ClassVar[str] = "the weighted sum of its candidates"
    strides: ClassVar[tuple[int, ...]] = (1,)

    def fits(self, module: nn.Module, x: Tensor) -> bool:
        """Say yes: the shape of the weights says all."""
        return True


@dataclasses.dataclass(frozen=True)
class EdgeSum(_OneInput):
    r"""An edge: :math:`y = \sum_k w_k\, o_k(x)`.

    Attributes:
        container: Name of the child that holds the candidates.
        parts: The candidates take one out of so many channels.
    """

    container: str
    parts: int = 1

    def candidates(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the candidates by name."""
        held = module._modules[self.container]._modules
        return {f"{self.container}.{name}": candidate for name, candidate in held.items()}

    def shape(self, module: nn.Module) -> tuple[int, ...]:
        """Return ``[candidates]``."""
        return (len(module._modules[self.container]._modules),)

    def run(self, module: nn.Module, x: Tensor, weights: Tensor, recipes: Recipes) -> Tensor:
        """Return the sum."""
        held = module._modules[self.container]._modules.values()
        return mix([x], [Term(0, m, recipes.of(k, m)) for k, m in enumerate(held)], weights)


@dataclasses.dataclass(frozen=True)
class PartialSum(EdgeSum):
    """An edge that mixes the first 1 / ``parts`` of the channels and shuffles all of them.

    Attributes:
        pool: Name of the child that halves the other channels where the candidates do.

    References:
        Xu et al., "PC-DARTS: Partial Channel Connections", ICLR 2020, section 3.1.
    """

    pool: str | None = None

    def run(self, module: nn.Module, x: Tensor, weights: Tensor, recipes: Recipes) -> Tensor:
        """Return mixed and other channels, shuffled."""
        width = x.shape[1] // self.parts
        mixed = super().run(module, x[:, :width], weights, recipes)
        other = x[:, width:]
        if mixed.shape[2] != x.shape[2]:
            other = module._modules[self.pool](other)
        y = torch.cat([mixed, other], dim=1)
        samples, channels, height, columns = y.shape
        groups = y.view(samples, self.parts, channels // self.parts, height, columns)
        return groups.transpose(1, 2).reshape(samples, channels, height, columns)


@dataclasses.dataclass(frozen=True)
class CellSum(_OneInput):
    """A whole cell with one input: every node sums the mixed edges from all nodes before it.

    Attributes:
        container: Name of the child that holds one list of candidates for each edge, the edges
            into the second node first.
        nodes: Number of nodes, the input among them; the last one is the output.

    References:
        Dong & Yang, "NAS-Bench-201", ICLR 2020, section 2.1.
    """

    container: str
    nodes: int
    parts: int = 1

    def candidates(self, module: nn.Module) -> dict[str, nn.Module]:
        """Return the candidates by name, edge after edge."""
        return {
            f"{self.container}.{edge}.{name}": candidate
            for edge, held in module._modules[self.container]._modules.items()
            for name, candidate in held._modules.items()
        }

    def shape(self, module: nn.Module) -> tuple[int, ...]:
        """Return ``[edges, candidates]``."""
        edges = module._modules[self.container]._modules
        return len(edges), len(next(iter(edges.values()))._modules)

    def run(self, module: nn.Module, x: Tensor, weights: Tensor, recipes: Recipes) -> Tensor:
        """Return the last node."""
        edges = [
            list(e._modules.values()) for e in module._modules[self.container]._modules.values()
        ]
        width = len(edges[0])
        sums, row = [], 0
        for node in range(1, self.nodes):
            terms = [
                Term(source, candidate, recipes.of((row + source) * width + k, candidate))
                for source in range(node)
                for k, candidate in enumerate(edges[row + source])
            ]
            sums.append(Sum(terms, weights[row : row + node].flatten()))
            row += node
        whole = run_whole([x], sums)
        if whole is not None:
            return whole
        states = [x]
        for terms, of_node, _ in sums:
            states.append(mix(states, terms, of_node))
        return states[-1]


def guesses(module: nn.Module) -> Iterator[Form]:
    """Yield the forms that fit the structure of ``module``, the likeliest first.

    Example:
        >>> class Edge(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ops = nn.ModuleList([nn.Identity(), nn.MaxPool2d(3, 1, 1)])
        ...     def forward(self, x, weights):
        ...         return sum(w * op(x) for w, op in zip(weights, self.ops))
        >>> next(guesses(Edge()))
        EdgeSum(container='ops', parts=1)
    """
    holders = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    for name, child in module.named_children():
        if not isinstance(child, holders) or not len(child):
            continue
        held = list(child.children())
        lengths = {len(edge) if isinstance(edge, holders[:2]) else 0 for edge in held}
        nodes = next(n for n in range(2, len(held) + 3) if n * (n - 1) // 2 >= len(held))
        if len(lengths) == 1 and 0 not in lengths:
            if nodes * (nodes - 1) // 2 == len(held):
                yield CellSum(name, nodes)
            continue
        yield EdgeSum(name)
        pools = [other for other, m in module.named_children() if isinstance(m, nn.MaxPool2d)]
        if len(pools) <= 1:
            own = {v for v in vars(module).values() if type(v) is int and v > 1}
            for parts in sorted(own | {2, 4, 8}, key=lambda v: (v not in own, v)):
                yield PartialSum(name, parts, pools[0] if pools else None)


def parameters_of_forward(module: nn.Module) -> tuple[str, ...]:
    """Return the names of what ``forward`` must be given, or nothing if that cannot be known."""
    try:
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return ()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return ()
    return tuple(p.name for p in parameters if p.default is p.empty)


def mix(xs: Sequence[Tensor], terms: Sequence[Term], weights: Tensor) -> Tensor:
    """Return the weighted sum: what is recognised in one fused node, the rest as modules.

    Args:
        xs: Inputs of the edges.
        terms: What is summed.
        weights: One weight for each term.

    Example:
        >>> x = torch.ones(1, 2, 4, 4)
        >>> terms = [Term(0, nn.Identity(), None), Term(0, nn.ReLU(), None)]
        >>> float(mix([x], terms, torch.tensor([0.5, 2.0]))[0, 0, 0, 0])
        2.5
    """
    call = gather(xs, terms, weights)
    total, rest = None, range(len(terms))
    if call is not None:
        rest = call.rest
        total = call.run(chosen(weights, call.places, len(terms)))
        if not rest:
            return total
        weights = chosen(weights, rest)
    outputs = (terms[place].module(xs[terms[place].edge]) for place in rest)
    if torch.is_grad_enabled() or total is None:
        added = ops.mixed_sum(list(outputs), weights)
        return added if total is None else total + added
    for y, weight in zip(outputs, weights.unbind(), strict=True):
        total.addcmul_(y, weight)
    return total


def run_whole(inputs: Sequence[Tensor], sums: Sequence[Sum]) -> Tensor | None:
    """Return the last node of a cell, run as one operator, or None where a part is a plain module.

    Args:
        inputs: Inputs of the cell.
        sums: Its nodes, in order.

    Example:
        >>> double = Sum([Term(0, nn.ReLU(), None)], torch.tensor([2.0]))
        >>> run_whole([torch.ones(1, 2, 4, 4)], [double]) is None  # no fused node takes a ReLU
        True
    """
    planned = plan_cell(inputs, sums)
    if planned is None:
        return None
    calls, nodes = planned
    y, statistics = ops.fused_cell(inputs, nodes, parts=1)
    for call, of_norms in zip(calls, statistics, strict=True):
        call.track(of_norms)
    return y
