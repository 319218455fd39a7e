"""Weight steps where only the device knows which candidates ran.

Weights of a candidate that did not run are moved by neither momentum nor decay. Where the host
knows it, they get no gradient and the optimizer passes over them. Where it does not, theirs is
zero: the optimizer moves everything, and what did not run is put back.
"""

from collections import Counter

import torch
from torch import Tensor

from pyfast_nas.nn import MixedOp, Supernet

__all__ = ["MaskedStep"]


class MaskedStep:
    """Steps of SGD that leave the weights and momenta of candidates that did not run.

    Args:
        supernet: Super-net that says where its mixed operations stand.
        optimizer: Optimizer of its weights.

    Attributes:
        reason: Why there can be no such steps; empty where there can.

    Shape:
        ran ``[rows, num_ops]``, the tables of the super-net one below the other.

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
        owners: list[int] = []  # of each of them, the candidate in the flattened tables
        width = max(len(row) for rows in supernet.candidates.values() for row in rows)
        first_row, rows = {}, 0
        for table, of_table in supernet.candidates.items():
            first_row[table], rows = rows, rows + len(of_table)
        for table, row, edge in supernet.placed_edges():
            for index in range(edge.num_ops):
                found = [p for p in edge.candidate(index).parameters() if p.requires_grad]
                self._parameters += found
                owners += [(first_row[table] + row) * width + index] * len(found)
        self.reason = _why_not(supernet, self._parameters)
        lengths = torch.tensor([p.numel() for p in self._parameters], dtype=torch.int64)
        of_numbers = torch.tensor(owners, dtype=torch.int32).repeat_interleave(lengths)
        self._owners = of_numbers.to(next(iter(supernet.alphas.values())).device)

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
