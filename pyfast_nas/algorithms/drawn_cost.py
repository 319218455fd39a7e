"""What a drawn architecture costs: from a table, by the clock, or by a function of the user's.

Such a cost need not have a derivative. Beside it stands a table, as its differentiable surrogate.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.algorithms.cost_aware import LATENCY_BATCH, CostAware, image_batch
from pyfast_nas.algorithms.options import Range, require_read
from pyfast_nas.costs import DrawnNetwork, fit_costs, hinge
from pyfast_nas.errors import ConfigError, DataError
from pyfast_nas.nn import Supernet
from pyfast_nas.spaces.base import Genotype
from pyfast_nas.spaces.choices import choices_of

__all__ = ["DrawnCost"]


@dataclasses.dataclass(kw_only=True, eq=False)
class DrawnCost(CostAware):
    """Gives a search the cost of single draws beside a table; comes before the base class."""

    latency: Literal["table", "measured"] = "table"
    """Whether a draw costs what the table says, or as many milliseconds as it takes, timed each
    time; the table is the surrogate then."""

    cost_target: Annotated[float | None, Range()] = None
    """Cost that is free, in the unit of the cost: only what is above it counts. None counts all."""

    cost_weight: Annotated[float, Range(at_least=0)] = 0.1
    """Weight of a unit of cost in the loss of the architecture."""

    cost_warmup: Annotated[float, Range(at_least=0, at_most=1)] = 1 / 3
    """Share of the architecture's steps in which the weight of the cost rises from 0."""

    surrogate_samples: Annotated[int, Range(at_least=1)] = 1000
    """Architectures that the table is fitted to where a criterion is set and no cost is named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.criterion: Callable[[Genotype], float] | None = None
        if self.latency == "measured" and self.cost == "none":
            raise ConfigError(
                f"{type(self).__name__}: cost must name a table in ms, the surrogate of what "
                f"latency='measured' measures, got 'none'"
            )

    def prepare(self, supernet: Supernet, **run: Any) -> None:
        """Take the supernet to search and find what draws cost; see the base class.

        Raises:
            ConfigError: If an option is set that no cost reads; if latency is measured, and the
                table is not in ms or a criterion is set; if a criterion is set, and genotypes of
                the space leave out some of what is drawn.
            DataError: If the criterion gives a cost that is not finite.
        """
        is_named, has_criterion = self.cost != "none", self.criterion is not None
        costs = dict.fromkeys(
            ("cost_target", "cost_weight", "cost_warmup"), is_named or has_criterion
        )
        fits = has_criterion and not is_named and self._wants_surrogate
        read = costs | {"surrogate_samples": fits}
        given = "a criterion" if has_criterion else "no criterion"
        given += "" if self._wants_surrogate else ", without a surrogate"
        require_read(self, read, f"cost={self.cost!r:.200} and {given}")
        super().prepare(supernet, **run)
        if self.criterion is not None:
            self._require_whole_genotypes()
        if self.latency == "measured":
            if self.cost_table.unit != "ms" or self.criterion is not None:
                what = "a criterion" if self.criterion else f"a table in {self.cost_table.unit!r}"
                raise ConfigError(
                    f"{type(self).__name__}: latency must be 'table' with {what}, got 'measured'"
                )
            shape = image_batch(self, "latency", LATENCY_BATCH)
            self._drawn_network = DrawnNetwork(supernet, shape)
        elif fits:
            samples, seed = self.surrogate_samples, ops.draw_seed(self.generator)
            self._set_costs(
                fit_costs(self.price, supernet.candidates, samples, seed=seed, unit="criterion")
            )

    @property
    def _wants_surrogate(self) -> bool:
        """Whether anything looks at the surrogate of a criterion."""
        return True

    def _require_whole_genotypes(self) -> None:
        """Refuse a criterion that would be asked about another network than the one drawn."""
        candidates = self.supernet.candidates
        for column in range(max(len(row) for rows in candidates.values() for row in rows)):
            choice = {
                table: torch.arange(max(map(len, rows)))
                == torch.tensor([[min(column, len(row) - 1)] for row in rows])
                for table, rows in candidates.items()
            }
            seen = choices_of(self._genotype(choice), candidates)
            if not all(torch.equal(seen[table], flags) for table, flags in choice.items()):
                raise ConfigError(
                    f"{type(self).__name__}: criterion must be None where genotypes leave out "
                    f"edges that are drawn, as those of {self.space.name!r} do here: take "
                    "edges='all' of the space, nas-bench-201 or a chain, or name a cost, got a "
                    "criterion"
                )

    def _genotype(self, choice: dict[str, Tensor]) -> Genotype:
        # Logits so far apart that the drawn candidate is the likeliest however long its row.
        return self.space.derive({table: 30.0 * flags for table, flags in choice.items()})

    def penalty(self, cost: Tensor, weight: float) -> Tensor:
        """Return the weighted cost, or what of it is above the target."""
        return weight * cost if self.cost_target is None else hinge(cost, self.cost_target, weight)

    def price(self, choice: dict[str, Tensor]) -> float:
        """Return what a discrete architecture costs, in the unit of the table.

        Args:
            choice: Flags by table, one candidate in each row.

        Raises:
            DataError: If the criterion returns no finite number.
        """
        if self.latency == "measured":
            return self._drawn_network.milliseconds(choice)
        if self.criterion is None:
            return self.cost_table.of(choice)
        value = self.criterion(self._genotype(choice))
        is_number = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
        number = float(value) if is_number else math.nan
        if not math.isfinite(number):
            raise DataError(f"criterion: must return a finite number, got {value!r:.200}")
        return number

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside ``supernet.state_dict()``, continues the search to the bit."""
        return super().state_dict() | {"criterion": self.criterion is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, with the criterion that is set.

        Raises:
            ConfigError: If the state is of a search with a criterion and none is set, or the other
                way round.
        """
        is_set = self.criterion is not None
        if state.get("criterion", is_set) != is_set:
            wanted = "None" if is_set else "set before load_state_dict"
            raise ConfigError(
                f"load_state_dict: criterion must be {wanted}, as in the search that was saved, "
                f"got {self.criterion!r:.200}"
            )
        super().load_state_dict(state)
