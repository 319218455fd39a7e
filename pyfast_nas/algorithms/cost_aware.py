"""What searches share that weigh what an architecture costs: where the costs come from."""

import dataclasses
import os
from typing import Any

from pyfast_nas.costs.counting import count
from pyfast_nas.costs.latency import measure_latency
from pyfast_nas.costs.table import CostTable
from pyfast_nas.errors import ConfigError
from pyfast_nas.nn import Supernet

__all__ = ["CostAware", "image_batch"]

COUNTED = ("parameters", "multiply-adds")
KNOWN = (*COUNTED, "latency")
LATENCY_BATCH = 24  # that of the UNAS code


@dataclasses.dataclass(kw_only=True, eq=False)
class CostAware:
    """Gives a search a table of costs; comes before the search's base class.

    Attributes:
        cost_table: Cost of every candidate, on the device of the search; None without costs.

    Example:
        >>> from pyfast_nas import spaces
        >>> from pyfast_nas.algorithms import DARTS
        >>> @dataclasses.dataclass(kw_only=True, eq=False)
        ... class Search(CostAware, DARTS):
        ...     pass
        >>> search, space = Search(cost="parameters"), spaces.NASBench201(channels=4, cells=1)
        >>> search.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=1)
        >>> search.cost_table.rows["cell"][0].long().tolist()
        [0, 0, 364, 3052, 0]
    """

    cost: str = "none"
    """What counts as cost: "parameters", "multiply-adds", "latency" (milliseconds of a batch of 24,
    measured on the device of the search), the path of a table of costs, or "none"."""

    def prepare(self, supernet: Supernet, **run: Any) -> None:
        """Take the supernet to search and find what its candidates cost; see the base class.

        Raises:
            ConfigError: If the cost is none of these, its table is of other candidates, or the
                space has no images to count it for.
            DataError: If the file holds no table.
        """
        super().prepare(supernet, **run)
        self._set_costs(None if self.cost == "none" else self._find_costs())

    def _find_costs(self) -> CostTable:
        if self.cost in COUNTED:
            return count(self.supernet, image_batch(self, "cost"))[self.cost]
        if self.cost == "latency":
            return measure_latency(self.supernet, image_batch(self, "cost", LATENCY_BATCH))
        if not os.path.isfile(self.cost):
            raise ConfigError(
                f"{type(self).__name__}: cost must be one of 'none', "
                f"{', '.join(map(repr, KNOWN))} or the file of a table, got {self.cost!r:.200}"
            )
        table = CostTable.load(self.cost)
        found = {name: tuple(costs.shape) for name, costs in table.rows.items()}
        wanted = {name: tuple(alpha.shape) for name, alpha in self.supernet.alphas.items()}
        if found != wanted:
            raise ConfigError(
                f"{type(self).__name__}: cost must be a table with a cost for every candidate, "
                f"{wanted}, got {found!r:.200} from {self.cost!r:.200}"
            )
        return table

    def _set_costs(self, table: CostTable | None) -> None:
        self.cost_table = table and CostTable(
            table.unit, table.fixed, {name: c.to(self.device) for name, c in table.rows.items()}
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside ``supernet.state_dict()``, continues the search to the bit."""
        table = self.cost_table
        return super().state_dict() | {"cost_table": table and table.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, with the costs that it was saved with."""
        super().load_state_dict(state)
        table = state["cost_table"]
        self._set_costs(table and CostTable.from_dict(table))


def image_batch(search: Any, option: str, batch: int = 1) -> tuple[int, ...]:
    """Return the shape of a batch of images of a search's space.

    Args:
        search: A search after its ``prepare``.
        option: Which of its options asks for costs.
        batch: Images of the batch.

    Raises:
        ConfigError: If the space has no images.
    """
    space = search.space
    if not (hasattr(space, "in_channels") and hasattr(space, "image_size")):
        raise ConfigError(
            f"{type(search).__name__}: {option} must be a setting that counts and measures nothing "
            f"where the space, {space.name!r}, has no images, got {getattr(search, option)!r:.200}"
        )
    size = space.image_size
    return batch, space.in_channels, *(size if isinstance(size, tuple) else (size, size))
