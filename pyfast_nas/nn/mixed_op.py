"""MixedOp, the drop-in weighted sum of candidate operations, and the sum over several edges.

Neither owns architecture parameters: weights come in, from any gate.
"""

import functools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from pyfast_nas import ops
from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.nn.fusion import FusedCall, Recipes, Term, chosen, gather, is_served
from pyfast_nas.nn.gates import GateOutput, straight_through
from pyfast_nas.nn.primitives import Zero
from pyfast_nas.nn.recomputation import with_row_gradients

__all__ = ["MixedOp", "factors_of", "mix_edges", "places_of"]


class MixedOp(nn.Module):
    r"""Sum candidate operations by weight: :math:`y = \sum_k w_k\, o_k(x)`.

    Candidates that are recognised by their structure (identity, 3x3 pooling, separable, dilated and
    full convolutions with their batch norms, factorised reductions) run together in one
    `pyfast_nas.ops.fused_node`, where its kernel serves; it keeps the input and no activation. The
    others run as modules: with gradients enabled their outputs are summed in one pass by
    `pyfast_nas.ops.mixed_sum`; with gradients disabled they are added up one by one and freed, so
    the peak memory does not grow with their number. A candidate that is not active, or that is
    ``none``, does not run.

    A candidate with a hook on any of its modules runs as a module, and so does everything under
    `torch.compile`, with ``PYFAST_NAS_KERNELS=reference``, and under autocast what does not come in
    autocast's dtype to a GPU.

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
        self._recipes = Recipes()

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

    def term(self, edge: int, index: int) -> Term:
        """Return candidate number ``index`` as a term of a sum in which this is edge ``edge``."""
        module = self.candidate(index)
        return Term(edge, module, self._recipes.of(index, module))

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
    total = _mix(edges, inputs, gate, first_row)
    if gate.shift is None:
        return total
    return total + gate.shift[first_row : first_row + len(edges)].sum().to(total.dtype)


def _mix(
    edges: Sequence[MixedOp], inputs: Sequence[Tensor], gate: GateOutput, first_row: int
) -> Tensor:
    if gate.recompute:
        rows = slice(first_row, first_row + len(edges))
        return with_row_gradients(
            functools.partial(_mix, edges, inputs, gate.path(), first_row),
            gate.weights[rows],
            edges,
            inputs,
            None if gate.active is None else gate.active[rows],
        )
    places, positions = places_of(edges, gate, first_row)
    if not places:
        return edges[0].candidate(edges[0].is_zero.index(True))(inputs[0])
    again = gate.active is None  # other samples run other candidates
    weights = chosen(gate.weights.flatten(), positions, again=again)
    flags = None if gate.selected is None else chosen(gate.selected.flatten(), positions)
    if is_served(inputs[0], weights):
        factors = factors_of(weights, gate.straight_through)
        call = gather(inputs, [edges[edge].term(edge, k) for edge, k in places], factors)
        if call is not None:
            first = call.run(
                chosen(factors, call.places, len(places), again),
                None if flags is None else chosen(flags, call.places, len(places)),
            )
            if not call.rest:
                return first
            outputs = _run(edges, inputs, places, flags, call)
            return _sum(
                outputs, chosen(weights, call.rest, again=again), gate.straight_through, first
            )
    return _sum(_run(edges, inputs, places, flags), weights, gate.straight_through)


def places_of(
    edges: Sequence[MixedOp], gate: GateOutput, first_row: int = 0
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return what runs of several edges that meet in one node.

    Args:
        edges: The edges, in row order.
        gate: Weights of all rows of the table.
        first_row: Row of the first edge.

    Returns:
        Of everything that runs (edge, candidate), and where its weight is in the flattened table.
    """
    columns = gate.weights.shape[1]
    widest = max(edge.num_ops for edge in edges)
    if gate.active is None and columns < widest:
        raise ValueError(
            f"MixedOp: weights must have a column for each of {widest} candidates, got {columns}"
        )
    places, positions = [], []
    for index, edge in enumerate(edges):
        row = first_row + index
        chosen = range(edge.num_ops) if gate.active is None else gate.active[row]
        for column, candidate in enumerate(chosen):
            if not edge.is_zero[candidate]:
                places.append((index, candidate))
                positions.append(row * columns + column)
    return places, positions


def _sum(
    outputs: Iterator[Tensor], weights: Tensor, single_paths: bool, first: Tensor | None = None
) -> Tensor:
    """Add weighted outputs to ``first``, a sum that nobody else holds, or to nothing."""
    if single_paths:
        terms = (
            straight_through(y, weight) for y, weight in zip(outputs, weights.unbind(), strict=True)
        )
        return functools.reduce(operator.add, terms if first is None else (first, *terms))
    if torch.is_grad_enabled():
        total = ops.mixed_sum(list(outputs), weights)
        return total if first is None else first + total
    return _stream(outputs, weights, first)


def factors_of(weights: Tensor, single_paths: bool) -> Tensor:
    """Return what terms are multiplied by: their weights, or ones with the derivatives of these."""
    if not single_paths:
        return weights
    if not weights.requires_grad and forward_ad.unpack_dual(weights).tangent is None:
        return torch.ones_like(weights)
    return 1 + (weights - weights.detach())


def _run(
    edges: Sequence[MixedOp],
    inputs: Sequence[Tensor],
    places: Sequence[tuple[int, int]],
    flags: Tensor | None = None,
    call: FusedCall | None = None,
) -> Iterator[Tensor]:
    """Yield the outputs one by one, checked against the first one's shape.

    Args:
        edges: The edges.
        inputs: Their inputs.
        places: (edge, candidate) of everything that runs.
        flags: Of these, whose outputs count; None for all. The others give zeros.
        call: What ran in a fused node and gave the first shape; the rest is left to run.
    """
    shape, like = (None, places[0]) if call is None else (call.size, places[call.places[0]])
    for place in range(len(places)) if call is None else call.rest:
        index, candidate = places[place]
        x, module = inputs[index], edges[index].candidate(candidate)
        version = _version(x)
        y = module(x) if flags is None else _run_if(flags[place], module, x)
        if _version(x) != version:
            raise SearchSpaceError(
                f"MixedOp: candidate {edges[index].names[candidate]!r} must leave its input as it "
                f"is, got an in-place change; its siblings read the same input"
            )
        if shape is None:
            shape = y.shape
        elif y.shape != shape:
            first_edge, first = like
            raise SearchSpaceError(
                f"MixedOp: candidate {edges[index].names[candidate]!r} of edge {index} must give "
                f"{list(shape)} like {edges[first_edge].names[first]!r} of edge {first_edge}, "
                f"got {list(y.shape)}"
            )
        yield y
        del y


def _run_if(flag: Tensor, module: nn.Module, x: Tensor) -> Tensor:
    """Run a module; where the flag is off it gives zeros and its buffers are as they were.

    There it runs on zeros, so that no gradient of what it gives reaches the input.
    """
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    y = module(torch.where(flag, x, 0))
    for buffer, before in buffers:
        # A backward may have kept it: one that was only read is still what it was.
        buffer.data.copy_(torch.where(flag, buffer, before))
    return torch.where(flag, y, 0)


def _stream(outputs: Iterator[Tensor], weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Add up in place, so that only the running sum and one candidate's output are alive."""
    weight = iter(weights.unbind())
    if total is None:
        y = next(outputs)
        dtype = torch.promote_types(y.dtype, weights.dtype)
        total = y.to(torch.promote_types(dtype, torch.float32)) * next(weight)
        del y
    else:
        dtype = total.dtype
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
