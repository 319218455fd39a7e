"""What searches share that weigh what an architecture costs: where the costs come from."""

import dataclasses
import os
from typing import Any

from pyfast_nas.costs.counting import count
from pyfast_nas.costs.latency import measure_latency
from pyfast_nas.costs.table import CostTable
from pyfast_nas.errors import ConfigError
from pyfast_nas.nn import Supernet
from pyfast_nas.spaces.base import SearchSpace

__all__ = ["CostAware", "find_costs", "image_batch"]

COUNTED = ("parameters", "multiply-adds")
KNOWN = (*COUNTED, "latency")
LATENCY_BATCH = 24  # that of the UNAS code
_NO_IMAGES = "'none' or the file of a table"


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
        option = f"{type(self).__name__}: cost"
        self._set_costs(find_costs(self.cost, self.supernet, self.space, option))

    def _set_costs(self, table: CostTable | None) -> None:
        self.cost_table = table and dataclasses.replace(
            table, rows={name: costs.to(self.device) for name, costs in table.rows.items()}
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside ``supernet.state_dict()``, continues the search to the bit."""
        state = super().state_dict()
        return state | {"cost_table": self.cost_table and self.cost_table.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, with the costs that it was saved with."""
        super().load_state_dict(state)
        table = state["cost_table"]
        self._set_costs(table and CostTable.from_dict(table))


def find_costs(cost: str, supernet: Supernet, space: SearchSpace, option: str) -> CostTable | None:
    """Return what the candidates of a supernet cost, or None for the cost ``"none"``.

    Args:
        cost: What counts as cost; see :class:`CostAware`.
        supernet: Network of ``space``, on the device of the search; nothing of it moves.
        space: Says how large the images are.
        option: What messages call ``cost``: who asks, and by which option.

    Raises:
        ConfigError: If the cost is none of these, its table is of other candidates, or the space
            has no images to count it for.
        DataError: If the file holds no table.
    """
    if cost == "none":
        return None
    if cost in COUNTED:
        return count(supernet, _batch(space, option, _NO_IMAGES, cost, 1))[cost]
    if cost == "latency":
        return measure_latency(supernet, _batch(space, option, _NO_IMAGES, cost, LATENCY_BATCH))
    if not os.path.isfile(cost):
        raise ConfigError(
            f"{option} must be one of 'none', {', '.join(map(repr, KNOWN))} or the file of a "
            f"table, got {cost!r:.200}: no such file"
        )
    table = CostTable.load(cost)
    table.check(supernet.candidates, option, cost)
    return table


def image_batch(search: Any, option: str, batch: int = 1) -> tuple[int, ...]:
    """Return the shape of a batch of images of a search's space.

    Args:
        search: A search after its ``prepare``.
        option: Which of its options asks for costs.
        batch: Images of the batch.

    Raises:
        ConfigError: If the space has no images.
    """
    asked = f"{type(search).__name__}: {option}"
    wanted = "a setting that counts and measures nothing"
    return _batch(search.space, asked, wanted, getattr(search, option), batch)


def _batch(space: SearchSpace, option: str, wanted: str, given: Any, batch: int) -> tuple[int, ...]:
    if not (hasattr(space, "in_channels") and hasattr(space, "image_size")):
        raise ConfigError(
            f"{option} must be {wanted} where the space, {space.name!r}, has no images, got "
            f"{given!r:.200}"
        )
    size = space.image_size
    return batch, space.in_channels, *(size if isinstance(size, tuple) else (size, size))
