"""MixedOp, the drop-in weighted sum of candidate operations, and the sum over several edges.

Neither owns architecture parameters: weights come in, from any gate.
"""

import functools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pyfast_nas import ops
from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.nn.gates import GateOutput, straight_through
from pyfast_nas.nn.primitives import Zero

__all__ = ["MixedOp", "mix_edges"]


class MixedOp(nn.Module):
    r"""Sum candidate operations by weight: :math:`y = \sum_k w_k\, o_k(x)`.

    With gradients enabled all outputs are summed in one pass by `pyfast_nas.ops.mixed_sum`; with
    gradients disabled they are added up one by one and freed, so the peak memory does not grow
    with their number. A candidate that is not active, or that is ``none``, does not run.

    Args:
        candidates: Modules by name, or a plain sequence of modules (named by their index).

    Attributes:
        candidates: The modules, in order.
        names: Their names.
        num_ops: How many there are.

    Shape:
        x ``[...]``, weights ``[num_ops]`` or ``[len(active)]`` -> the candidates' output shape.

    Raises:
        TypeError: If a candidate is not a module.
        SearchSpaceError: If there is no candidate, two share a module, one has architecture
            parameters of its own, works in place on its input, or gives another shape.

    Example:
        >>> edge = MixedOp({"skip": nn.Identity(), "twice": nn.Linear(2, 2)})
        >>> edge(torch.ones(3, 2), torch.tensor([0.5, 0.5])).shape
        torch.Size([3, 2])
        >>> edge(torch.ones(3, 2), torch.tensor([2.0]), active=[0])[0]
        tensor([2., 2.])

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, eq. 2.
    """

    def __init__(self, candidates: Mapping[str, nn.Module] | Sequence[nn.Module]) -> None:
        super().__init__()
        named = (
            dict(candidates)
            if isinstance(candidates, Mapping)
            else {str(index): module for index, module in enumerate(candidates)}
        )
        _check_candidates(named)
        self.names: tuple[str, ...] = tuple(named)
        self.is_zero: tuple[bool, ...] = tuple(isinstance(m, Zero) for m in named.values())
        self.candidates = (
            nn.ModuleDict(named)
            if isinstance(candidates, Mapping)
            else nn.ModuleList(named.values())
        )

    @property
    def num_ops(self) -> int:
        """Number of candidates."""
        return len(self.names)

    def candidate(self, index: int) -> nn.Module:
        """Return candidate number ``index``."""
        if not 0 <= index < len(self.names):
            raise IndexError(
                f"MixedOp: candidate must be from 0 to {len(self.names) - 1}, got {index!r:.200}"
            )
        return self.candidates._modules[self.names[index]]

    def forward(self, x: Tensor, weights: Tensor, active: Sequence[int] | None = None) -> Tensor:
        """Run the active candidates on ``x`` and sum them by weight.

        Args:
            x: Input of every candidate.
            weights: One weight per candidate, or one per entry of ``active`` in its order.
            active: Candidates whose weight can be other than zero; None means all.
        """
        if active is not None:
            active = tuple(active)
            if not active or any(k not in range(self.num_ops) for k in active):
                raise ValueError(
                    f"MixedOp: active must be candidates from 0 to {self.num_ops - 1}, "
                    f"got {active!r:.200}"
                )
        columns = self.num_ops if active is None else len(active)
        if weights.shape == (self.num_ops,) and columns < self.num_ops:
            weights = weights[list(active)]
        if weights.shape != (columns,):
            raise ValueError(
                f"MixedOp: weights must have shape [{columns}] for {columns} candidates, "
                f"got {list(weights.shape)}"
            )
        gate = GateOutput(weights.unsqueeze(0), None if active is None else (active,))
        return mix_edges([self], [x], gate)


def mix_edges(
    edges: Sequence[MixedOp], inputs: Sequence[Tensor], gate: GateOutput, first_row: int = 0
) -> Tensor:
    """Sum the mixed operations of several edges that meet in one node.

    Args:
        edges: The edges, in row order.
        inputs: Input of each edge.
        gate: Weights of all rows of the table.
        first_row: Row of the first edge.

    Shape:
        each input ``[...]`` -> the common output shape of all candidates.

    Example:
        >>> edges = [MixedOp([nn.Identity()]), MixedOp([nn.Identity()])]
        >>> x = torch.ones(2)
        >>> mix_edges(edges, [x, x], GateOutput(torch.tensor([[0.5], [2.0]])))
        tensor([2.5000, 2.5000])
    """
    columns = gate.weights.shape[1]
    widest = max(edge.num_ops for edge in edges)
    if gate.active is None and columns < widest:
        raise ValueError(
            f"MixedOp: weights must have a column for each of {widest} candidates, got {columns}"
        )
    places = []  # (edge, candidate) of everything that runs
    positions = []  # where its weight is in the flattened table
    for index, edge in enumerate(edges):
        row = first_row + index
        chosen = range(edge.num_ops) if gate.active is None else gate.active[row]
        for column, candidate in enumerate(chosen):
            if not edge.is_zero[candidate]:
                places.append((index, candidate))
                positions.append(row * columns + column)
    if not places:
        return edges[0].candidate(edges[0].is_zero.index(True))(inputs[0])

    outputs = _run(edges, inputs, places)
    if gate.straight_through:
        weights = gate.weights.flatten()
        return functools.reduce(
            operator.add,
            (straight_through(y, weights[p]) for y, p in zip(outputs, positions, strict=True)),
        )
    # An index tensor drops `none` from the sum and still gives its weight a zero gradient.
    where = torch.tensor(positions).to(gate.weights.device, non_blocking=True)
    weights = gate.weights.flatten()[where]
    if torch.is_grad_enabled():
        return ops.mixed_sum(list(outputs), weights)
    return _stream(outputs, weights)


def _run(
    edges: Sequence[MixedOp], inputs: Sequence[Tensor], places: Sequence[tuple[int, int]]
) -> Iterator[Tensor]:
    """Yield the outputs one by one, checked against the first one's shape."""
    shape = None
    for index, candidate in places:
        x = inputs[index]
        version = _version(x)
        y = edges[index].candidate(candidate)(x)
        if _version(x) != version:
            raise SearchSpaceError(
                f"MixedOp: candidate {edges[index].names[candidate]!r} must leave its input as it "
                f"is, got an in-place change; its siblings read the same input"
            )
        if shape is None:
            shape = y.shape
        elif y.shape != shape:
            first_edge, first = places[0]
            raise SearchSpaceError(
                f"MixedOp: candidate {edges[index].names[candidate]!r} of edge {index} must give "
                f"{list(shape)} like {edges[first_edge].names[first]!r} of edge {first_edge}, "
                f"got {list(y.shape)}"
            )
        yield y
        del y


def _stream(outputs: Iterator[Tensor], weights: Tensor) -> Tensor:
    """Add up in place, so that only the running sum and one candidate's output are alive."""
    weight = iter(weights.unbind())
    y = next(outputs)
    dtype = torch.promote_types(y.dtype, weights.dtype)
    total = y.to(torch.promote_types(dtype, torch.float32)) * next(weight)
    del y
    for y in outputs:
        total.addcmul_(y, next(weight))
        del y
    return total.to(dtype)


def _version(x: Tensor) -> int:
    """Count of in-place changes; tensors of inference mode and traced ones keep none."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


def _check_candidates(named: Mapping[str, nn.Module]) -> None:
    if not named:
        raise SearchSpaceError("MixedOp: candidates must not be empty, got none")
    owner: dict[nn.Module, str] = {}
    for name, module in named.items():
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"MixedOp: candidate {name!r} must be a torch.nn.Module, "
                f"got {type(module).__name__}"
            )
        for part in module.modules():
            if owner.setdefault(part, name) != name:
                raise SearchSpaceError(
                    f"MixedOp: candidates must not share modules, got one "
                    f"{type(part).__name__} in both {owner[part]!r} and {name!r}"
                )
        leaf = next(part for part in module.modules() if not any(part.children()))
        if getattr(leaf, "inplace", False):
            raise SearchSpaceError(
                f"MixedOp: candidate {name!r} must leave its input as it is, got an in-place "
                f"{type(leaf).__name__} first; its siblings read the same input"
            )
        for parameter, _ in module.named_parameters():
            if re.match(r"alphas?(_|$)", parameter.rpartition(".")[2]):
                raise SearchSpaceError(
                    f"MixedOp: candidate {name!r} must not hold architecture parameters, "
                    f"got {parameter!r}"
                )
    if all(isinstance(module, Zero) for module in named.values()):
        raise SearchSpaceError("MixedOp: candidates must hold more than 'none', got only 'none'")
