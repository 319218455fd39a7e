r"""The resource cost of SNAS: parameters, operations and memory accesses of an edge in one number.

With :math:`\bar n, \bar F, \bar M` the means of the three under the weights of an edge, it costs

.. math::
    \tfrac13 (\ln\bar n + \ln\bar F + \ln\bar M) \quad\text{or}\quad
    0.43\,(2 \bar n + \bar F / 4000 + \bar M / 100),

and the cost of the network is the sum over the edges of a cell, averaged over the cells of a kind.
In the logarithmic form what is below 1 counts as 1.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pyfast_nas.costs.counting import count_edges
from pyfast_nas.nn.supernet import Supernet

__all__ = ["ResourceCost"]

_UNITS = ("parameters", "operations", "memory-access")
_LINEAR = (0.43 * 2, 0.43 / 4000, 0.43 / 100)


class ResourceCost:
    """The resource cost of a supernet as a function of its mixing weights.

    Args:
        supernet: Whose candidates are counted; says by ``placed_edges()`` where they are.
        input_shape: Shape of a batch, ``(N, C, H, W)``; costs are for one of its inputs.
        form: ``"log"`` or ``"linear"``, as at the top of the module.
        device: Where weights come from.

    Example:
        >>> from pyfast_nas import spaces
        >>> space = spaces.NASBench201(channels=4, cells=1)
        >>> cost = ResourceCost(space.supernet(), (1, 3, 8, 8), form="linear")
        >>> cost({"cell": torch.eye(5)[[0] * 6]})["cell"].tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]

    References:
        Xie, Zheng, Liu & Lin, "SNAS", ICLR 2019, section 2.4, and the authors' code.
    """

    def __init__(
        self,
        supernet: Supernet,
        input_shape: Sequence[int],
        *,
        form: Literal["log", "linear"] = "log",
        device: torch.device | str = "cpu",
    ) -> None:
        self.form = form
        self._costs: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}
        edges, _ = count_edges(supernet, input_shape)
        for table, rows in supernet.candidates.items():
            places = [edge for edge in edges if edge.table == table]
            costs = torch.zeros(len(_UNITS), len(places), max(map(len, rows)))
            for place, edge in enumerate(places):
                for unit, name in enumerate(_UNITS):
                    costs[unit, place, : len(edge.costs[name])] = edge.costs[name]
            at = torch.tensor([edge.row for edge in places], dtype=torch.int64)
            # Which places share a row, and that each has its part of the mean.
            shared = torch.arange(len(rows)).unsqueeze(1) == at
            self._means[table] = (shared / shared.sum(1, keepdim=True)).to(device)
            self._costs[table], self._rows[table] = costs.to(device), at.to(device)

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cost of every row, whose sum is that of the network; differentiable.

        Args:
            weights: Table name -> mixing weights.

        Shape:
            each table ``[rows, num_ops]`` -> ``[rows]``.
        """
        # A layer has more operations than float16 has numbers.
        wide = {
            table: rows.to(torch.promote_types(rows.dtype, torch.float32))
            for table, rows in weights.items()
        }
        return {
            table: self._means[table].to(wide[table]) @ self._places(table, wide[table])
            for table in self._costs
        }

    def _places(self, table: str, weights: Tensor) -> Tensor:
        means = (weights[self._rows[table]] * self._costs[table].to(weights)).sum(-1)
        if self.form == "log":
            return means.clamp(min=1).log().mean(0)
        return sum(factor * mean for factor, mean in zip(_LINEAR, means, strict=True))
