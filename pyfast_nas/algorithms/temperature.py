"""What searches share whose samples are relaxed at a temperature that falls with the epochs."""

import dataclasses
from typing import Annotated

from pyfast_nas.algorithms.gradient_search import GradientSearch
from pyfast_nas.algorithms.options import Range
from pyfast_nas.errors import ConfigError
from pyfast_nas.typing import Metrics

__all__ = ["TemperedSearch"]


@dataclasses.dataclass(kw_only=True, eq=False)
class TemperedSearch(GradientSearch):
    """A search with the temperature schedule of GDAS.

    References:
        Dong & Yang, CVPR 2019: 10 to 0.1 in the authors' code.
    """

    tau_max: Annotated[float, Range(above=0)] = 10.0
    """Temperature in the first epoch."""

    tau_min: Annotated[float, Range(above=0)] = 0.1
    """Temperature in the last epoch; linear in between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_min > self.tau_max:
            raise ConfigError(
                f"{type(self).__name__}: tau_min must be at most tau_max={self.tau_max:g}, "
                f"got {self.tau_min:g}"
            )

    @property
    def tau(self) -> float:
        """Temperature of this epoch."""
        done = self.epoch / max(self.epochs - 1, 1)
        return self.tau_max * (1 - done) + self.tau_min * done

    def _schedules(self) -> Metrics:
        return {"tau": self.tau}
