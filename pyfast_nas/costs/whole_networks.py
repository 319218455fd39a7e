"""Costs of whole networks that a supernet contains: timing one, fitting a table to many.

Where candidates do not simply add up, as with layers that run beside each other, a table of single
candidates is off. A table fitted to whole networks is right on the average.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pyfast_nas import _ext, ops
from pyfast_nas.costs.deployed import deployed
from pyfast_nas.costs.latency import measure_network
from pyfast_nas.costs.table import CostTable
from pyfast_nas.errors import ConfigError
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.supernet import Supernet

__all__ = ["DrawnNetwork", "fit_costs"]

Choice = Mapping[str, Tensor]
STREAM = 3  # of Philox, free for callers


class DrawnNetwork(nn.Module):
    """A plain copy of a supernet that runs one candidate of every row.

    Its layers are those of a derived network, and all edges of a cell run.

    Args:
        supernet: Copied; it may move on.
        input_shape: Shape of the batch that is timed.

    Example:
        >>> from pyfast_nas import spaces
        >>> net = DrawnNetwork(spaces.NASBench201(channels=4, cells=1).supernet(), (2, 3, 8, 8))
        >>> convolutions = {"cell": torch.eye(5)[[3] * 6].bool()}
        >>> net.milliseconds(convolutions, repeats=3) > 0
        True
    """

    def __init__(self, supernet: Supernet, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.supernet = deployed(supernet)
        self.input_shape = tuple(input_shape)
        self._gates: dict[str, GateOutput] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits of a batch."""
        return self.supernet(x, self._gates)

    def milliseconds(self, choice: Choice, *, warmup: int = 3, repeats: int = 10) -> float:
        """Return the median time of the passes that run a choice; see `measure_network`.

        Args:
            choice: Flags by table, one candidate in each row.
            warmup: Passes before the first that is timed.
            repeats: Timed passes.

        Shape:
            each table of the choice ``[rows, num_ops]``.
        """
        device = next(iter(self.supernet.alphas.values())).device
        self._gates = {
            table: GateOutput(
                torch.ones(len(flags), 1, device=device),
                tuple((pick,) for pick in flags.long().argmax(dim=1).tolist()),
                straight_through=True,
            )
            for table, flags in choice.items()
        }
        # Kernels choose the layout of their maps: a derived network has plain layers alone.
        with _ext.use("reference"):
            return measure_network(self, self.input_shape, warmup=warmup, repeats=repeats)


def fit_costs(
    cost_of: Callable[[Choice], float],
    candidates: Mapping[str, Sequence[Sequence[str]]],
    samples: int,
    *,
    seed: Tensor,
    unit: str,
    ridge: float = 1.0,
) -> CostTable:
    """Fit a table to what whole networks cost, drawn uniformly.

    Args:
        cost_of: Cost of a choice, flags ``[rows, num_ops]`` by table.
        candidates: Candidate names by table, as of a space or a supernet.
        samples: Networks to draw.
        seed: Seed and offset, int64 ``[2]``.
        unit: Unit of the costs.
        ridge: How much the fit is shrunk; see `CostTable.fit`.

    Raises:
        ConfigError: If there is no sample.
        DataError: If a cost is not finite.

    Example:
        >>> table = fit_costs(
        ...     lambda choice: float(choice["cell"][:, 1].sum()),
        ...     {"cell": [["skip", "conv"]] * 2},
        ...     20,
        ...     seed=torch.tensor([0, 0]),
        ...     unit="convolutions",
        ...     ridge=1e-9,
        ... )
        >>> round(table.of({"cell": torch.tensor([[False, True], [True, False]])}), 6)
        1.0

    References:
        Vahdat et al., "UNAS", CVPR 2020, section 3.2.
    """
    if samples < 1:
        raise ConfigError(f"fit_costs: samples must be at least 1, got {samples}")
    lengths = {
        table: torch.tensor([len(row) for row in rows]) for table, rows in candidates.items()
    }
    rows = sum(map(len, lengths.values()))
    drawn = ops.philox_uniform(seed.cpu(), samples, rows, stream=STREAM).double()
    choices: list[dict[str, Tensor]] = [{} for _ in range(samples)]
    for (table, counts), part in zip(
        lengths.items(), drawn.split([len(c) for c in lengths.values()], dim=1), strict=True
    ):
        width = int(counts.max())
        for choice, picks in zip(choices, (part * counts).long(), strict=True):
            choice[table] = torch.arange(width) == picks.unsqueeze(1)
    costs = [cost_of(choice) for choice in choices]
    table = CostTable.fit(choices, costs, unit=unit, ridge=ridge)
    about = f"fitted to {samples} networks"
    return dataclasses.replace(table, candidates=candidates, about=about)
