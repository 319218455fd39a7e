"""The curvature of the validation loss in the architecture, and stopping before it runs away.

Zela, Elsken, Saikia, Marrakchi, Brox & Hutter, "Understanding and Robustifying Differentiable
Architecture Search", ICLR 2020, arXiv 1909.09656 (RobustDARTS).

From the paper and its code: the largest eigenvalue of the Hessian in the architecture parameters
on one validation batch every other epoch, averaged over five measurements; where the average has
grown by more than 1.3 over four measurements the search ends (DARTS-ES), or goes back and
regularises more strongly (DARTS-ADA). Ours: Lanczos iterations on products instead of the whole
matrix, and the largest eigenvalue by algebraic value.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Generator

from pyfast_nas.algorithms.options import Range, check_options
from pyfast_nas.engine.callbacks import EpochEnd, GoBack, Stop
from pyfast_nas.errors import ConfigError
from pyfast_nas.hypergradients.lanczos import lanczos
from pyfast_nas.hypergradients.products import HessianProducts

__all__ = ["CurvatureMonitor", "local_averages"]


@dataclasses.dataclass(kw_only=True)
class CurvatureMonitor:
    """Measure the largest eigenvalue of the architecture Hessian, and act on its growth.

    Pass it to :func:`~pyfast_nas.search` in ``callbacks``. The eigenvalue stands in the epoch's row
    of metrics as ``curvature``, its average over the last measurements as ``curvature_average``.
    A measurement changes nothing of the search: neither weights nor statistics nor random streams.

    Attributes:
        measured: Epoch and eigenvalue of every measurement that still counts.

    Example:
        >>> from pyfast_nas import search
        >>> monitor = CurvatureMonitor(interval=1)
        >>> result = search("toy", "toy", epochs=2, callbacks=[monitor])
        >>> [epoch for epoch, _ in monitor.measured], "curvature" in result.history[1]
        ([1, 2], True)

    References:
        Zela et al., ICLR 2020, sections 4 and 5, and the authors' code for the constants.
    """

    interval: Annotated[int, Range(at_least=1)] = 2
    """Epochs between two measurements."""

    window: Annotated[int, Range(at_least=1)] = 5
    """Measurements that are averaged."""

    lag: Annotated[int, Range(at_least=1)] = 4
    """Measurements between the two averages that are compared."""

    factor: Annotated[float, Range(above=0)] = 1.3
    """Growth of the average beyond which the search is ended or sent back."""

    earliest: Annotated[int, Range(at_least=1)] = 10
    """First epoch that can be returned to."""

    action: Literal["watch", "stop", "go_back"] = "watch"
    """Only measure; end with the architecture from before the growth; or go on from there with a
    larger weight decay."""

    extra: Annotated[int, Range(at_least=0)] = 0
    """Further epochs to go back."""

    decay_factor: Annotated[float, Range(above=1)] = 3.0
    """What the weight decay is multiplied by on the way back."""

    decay_limit: Annotated[float, Range(above=0)] = 0.0243
    """Weight decay beyond which the search is ended rather than sent back."""

    products: Annotated[int, Range(at_least=1)] = 20
    """Most Hessian-vector products of a measurement."""

    exact: bool = False
    """Products by differentiating twice, in the memory of several plain steps, rather than by
    central differences of kernel gradients."""

    samples: Annotated[int | None, Range(at_least=1)] = None
    """Images of the validation batch that are taken; by default all."""

    add_alpha_decay: bool = False
    """Add the weight decay of the architecture parameters, as the authors' code does."""

    def __post_init__(self) -> None:
        check_options(self)
        self.measured: list[tuple[int, float]] = []
        self._kept: dict[int, dict[str, Any]] = {}

    def __call__(self, end: EpochEnd) -> Stop | GoBack | None:
        """Measure where it is time, and judge.

        Raises:
            ConfigError: If the algorithm has no loss to differentiate in the alphas.
        """
        if self.measured and end.epoch <= self.measured[-1][0]:
            self.measured, self._kept = [], {}  # another search has begun
        if self.action == "go_back":
            self._remember(end)
        if end.epoch % self.interval:
            return None
        value = self.measure(end)
        self.measured.append((end.epoch, value))
        end.row["curvature"] = value
        averages = local_averages([value for _, value in self.measured], self.window)
        if averages[-1] is not None:
            end.row["curvature_average"] = averages[-1]
        target = self._target(averages)
        return None if target is None or self.action == "watch" else self._act(end, target)

    def measure(self, end: EpochEnd) -> float:
        """Return the largest eigenvalue now, on one validation batch."""
        algorithm = end.algorithm
        if not hasattr(algorithm, "bilevel_problem"):
            raise ConfigError(
                "CurvatureMonitor: algorithm must have a loss in its architecture parameters, got "
                f"{algorithm.name!r}"
            )
        problem = algorithm.bilevel_problem()
        batch = tuple(tensor[: self.samples] for tensor in end.valid)
        mode = "exact" if self.exact else "finite_difference"
        # The same start each time, so that a change is the Hessian's.
        draws = Generator(problem.alphas[0].device).manual_seed(0)
        products = HessianProducts(problem, batch, split="valid", mode=mode)
        found = lanczos(
            products.aa,
            problem.alphas,
            steps=self.products,
            generator=draws,
        )
        decay = algorithm.alpha_decay if self.add_alpha_decay else 0.0
        return float(found.values[0]) + decay

    def _target(self, averages: Sequence[float | None]) -> int | None:
        """Epoch to return to if the average has just grown too much."""
        if len(averages) <= self.lag or None in (averages[-1], averages[-1 - self.lag]):
            return None
        now, before = averages[-1], averages[-1 - self.lag]
        # A ratio says nothing of growth from below zero.
        if before <= 0 or now / before <= self.factor:
            return None
        # An average belongs to the middle of its window.
        middle = self.measured[-1][0] - self.interval * (self.window // 2)
        target = middle - self.interval * self.lag
        return target if target >= self.earliest else None

    def _act(self, end: EpochEnd, target: int) -> Stop | GoBack:
        target = max(target - self.extra, 1)
        if self.action == "go_back":
            # Soon after a return older states are gone: then the oldest that is there.
            older = [epoch for epoch in self._kept if epoch <= target]
            target = max(older, default=min(self._kept))
        grown = f"the curvature in the architecture grew more than {self.factor:g}-fold"
        if self.action == "stop":
            words = f"{grown} by epoch {end.epoch}: the search ended with epoch {target}"
            return Stop(epoch=target, reason=words)
        optimizer = end.algorithm.weight_optimizer
        decay = optimizer.param_groups[0]["weight_decay"] * self.decay_factor
        if not 0 < decay <= self.decay_limit:
            limit = f"would be beyond {self.decay_limit:g}" if decay else "cannot grow"
            words = (
                f"{grown} by epoch {end.epoch}: the search ended with epoch {target}, since a "
                f"weight decay of {decay:g} {limit}"
            )
            return Stop(epoch=target, reason=words)
        self._restore(end, target)
        for group in optimizer.param_groups:
            group["weight_decay"] = decay
        words = (
            f"{grown} by epoch {end.epoch}: the search went back to epoch {target} and on with a "
            f"weight decay of {decay:g}"
        )
        return GoBack(epoch=target, reason=words)

    def _remember(self, end: EpochEnd) -> None:
        """Keep the state of this epoch, and no older one than can be asked for."""
        state = {"supernet": end.algorithm.supernet.state_dict()}
        state["algorithm"] = end.algorithm.state_dict()
        self._kept[end.epoch] = _on_cpu(copy.deepcopy(state))
        reach = self.interval * (self.window // 2 + self.lag) + self.extra
        for epoch in [epoch for epoch in self._kept if epoch < end.epoch - reach]:
            del self._kept[epoch]

    def _restore(self, end: EpochEnd, epoch: int) -> None:
        state = self._kept[epoch]
        end.algorithm.supernet.load_state_dict(state["supernet"])
        end.algorithm.load_state_dict(copy.deepcopy(state["algorithm"]))
        self.measured = [pair for pair in self.measured if pair[0] <= epoch]
        self._kept = {kept: state for kept, state in self._kept.items() if kept <= epoch}


def local_averages(values: Sequence[float], window: int) -> list[float | None]:
    """Return for each measurement the mean of the last ``window``; None for the first two.

    Before there are ``window`` measurements it is the mean of all so far.

    Example:
        >>> local_averages([1.0, 2.0, 3.0, 4.0], 3)
        [None, None, 2.0, 3.0]
    """
    return [
        None
        if place < 2
        else sum(last := values[max(0, place + 1 - window) : place + 1]) / len(last)
        for place in range(len(values))
    ]


def _on_cpu(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, dict):
        return {key: _on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_on_cpu, state))
    return state
