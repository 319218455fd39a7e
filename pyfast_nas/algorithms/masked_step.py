"""Weight steps where only the device knows which candidates ran.

Weights of a candidate that did not run are moved by neither momentum nor decay; all others are, and
so are those that nothing of the loss has reached: `none` may cut off what leads to it. Where the
host knows what ran, weights without a gradient are passed over by the optimizer. Where it does not,
theirs is zero: the optimizer moves everything, and what did not run is put back.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyfast_nas.nn import MixedOp, Supernet

__all__ = ["MaskedStep"]


class MaskedStep:
    """Steps of SGD that leave the weights and momenta of candidates that did not run.

    Args:
        supernet: Supernet that says where its mixed operations stand.
        optimizer: Optimizer of its weights.

    Attributes:
        reason: Why there can be no such steps; empty where there can.

    Shape:
        ran ``[rows, num_ops]``, the tables of the supernet one below the other.

    Example:
        >>> from pyfast_nas import spaces
        >>> net = spaces.Toy().supernet()
        >>> sgd = torch.optim.SGD(net.weight_parameters(), lr=1.0, weight_decay=0.5)
        >>> net.score.weight.grad = torch.zeros_like(net.score.weight)
        >>> MaskedStep(net, sgd).step(torch.zeros(2, 4, dtype=torch.bool))
        >>> net.score.weight[0].item()  # no candidate's: it is moved
        0.05000000074505806
    """

    def __init__(self, supernet: Supernet, optimizer: torch.optim.SGD) -> None:
        self._optimizer = optimizer
        self._parameters: list[Tensor] = []
        self._of: dict[tuple[int, int], list[Tensor]] = {}  # (row, candidate) -> parameters
        owners: list[int] = []  # of each of them, the candidate in the flattened tables
        width = max(len(row) for rows in supernet.candidates.values() for row in rows)
        first_row, rows = {}, 0
        for table, of_table in supernet.candidates.items():
            first_row[table], rows = rows, rows + len(of_table)
        for table, row, edge in supernet.placed_edges():
            for index in range(edge.num_ops):
                found = [p for p in edge.candidate(index).parameters() if p.requires_grad]
                place = first_row[table] + row, index
                self._parameters += found
                self._of.setdefault(place, []).extend(found)
                owners += [place[0] * width + index] * len(found)
        of_candidates = set(self._parameters)
        self._shared = [p for p in supernet.weight_parameters() if p not in of_candidates]
        self.reason = _why_not(supernet, self._parameters)
        lengths = torch.tensor([p.numel() for p in self._parameters], dtype=torch.int64)
        of_numbers = torch.tensor(owners, dtype=torch.int32).repeat_interleave(lengths)
        self._owners = of_numbers.to(next(iter(supernet.alphas.values())).device)

    def fill(self, picks: Iterable[Sequence[int]]) -> None:
        """Give weights that a step moves a gradient of zero where backward has left them none.

        Args:
            picks: Of each sub-graph that ran, the candidate of every row.
        """
        if self.reason:
            return
        ran = {place for rows in picks for place in enumerate(rows)}
        for parameter in (*self._shared, *(p for place in ran for p in self._of.get(place, ()))):
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def step(self, ran: Tensor) -> None:
        """Make a step of the optimizer; only candidates that ``ran`` are moved."""
        tensors = self._parameters
        if not tensors:
            return self._optimizer.step()
        momenta = self._momenta()
        before = _flat(tensors), _flat(momenta)
        self._optimizer.step()
        selected = ran.flatten().index_select(0, self._owners)
        for some, old in zip((tensors, momenta), before, strict=True):
            if some:
                _put(some, torch.where(selected, _flat(some), old))

    def _momenta(self) -> list[Tensor]:
        """Return all momenta; those that no step has made yet begin at zero, which is the same."""
        if not self._optimizer.param_groups[0]["momentum"]:
            return []
        states = [self._optimizer.state[parameter] for parameter in self._parameters]
        for parameter, state in zip(self._parameters, states, strict=True):
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        return [state["momentum_buffer"] for state in states]


def _why_not(supernet: Supernet, parameters: list[Tensor]) -> str:
    placed = {id(edge) for _, _, edge in supernet.placed_edges()}
    if any(isinstance(m, MixedOp) and id(m) not in placed for m in supernet.modules()):
        return (
            f"{type(supernet).__name__}.placed_edges does not name every mixed operation: whose "
            "weights a step may move is not known"
        )
    counts = Counter(map(id, parameters))
    if any(count > 1 for count in counts.values()):
        return "candidates share a parameter: whether a step may move it is not known"
    return ""


@torch.no_grad()
def _flat(tensors: list[Tensor]) -> Tensor | None:
    return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else None


@torch.no_grad()
def _put(tensors: list[Tensor], flat: Tensor) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    shaped = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(tensors, shaped)
