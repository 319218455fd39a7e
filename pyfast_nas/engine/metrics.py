"""Metrics of a run: gathered on the device, fetched together, and looked at for divergence."""

import math
from collections import defaultdict

import torch
from torch import Tensor

from pyfast_nas.errors import DivergenceError
from pyfast_nas.typing import Metrics

__all__ = ["Means", "MetricBuffer"]


class MetricBuffer:
    """Keeps the metrics of steps as tensors until they cross to the host in one transfer.

    Example:
        >>> buffer = MetricBuffer("search")
        >>> buffer.add(1, {"train/loss": torch.tensor(2.0), "tau": 5.0})
        >>> buffer.fetch()
        [(1, {'train/loss': 2.0, 'tau': 5.0})]
    """

    def __init__(self, function: str):
        self._function = function
        self._rows: list[tuple[int, Metrics]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, step: int, metrics: Metrics) -> None:
        """Keep the metrics of one step; nothing waits for the device."""
        self._rows.append((step, metrics))

    def fetch(self) -> list[tuple[int, dict[str, float]]]:
        """Return and forget what was kept, as numbers.

        Raises:
            DivergenceError: If a value is NaN or infinite; names the first step and quantity.
        """
        rows, self._rows = self._rows, []
        tensors = [value for _, row in rows for value in row.values() if isinstance(value, Tensor)]
        fetched: list[float] = []
        if tensors:
            stacked = torch.stack(
                [tensor.detach().to(torch.float64).squeeze() for tensor in tensors]
            )
            fetched = stacked.cpu().tolist()
        numbers = iter(fetched)
        result = []
        for step, row in rows:
            values = {
                key: next(numbers) if isinstance(value, Tensor) else float(value)
                for key, value in row.items()
            }
            for key, value in values.items():
                if not math.isfinite(value):
                    raise DivergenceError(
                        f"{self._function}: {key} must stay finite, got {value} at step {step}"
                    )
            result.append((step, values))
        return result


class Means:
    """Running means by key; a key that only some rows have is averaged over those.

    Example:
        >>> means = Means()
        >>> means.add({"loss": 1.0})
        >>> means.add({"loss": 2.0, "tau": 4.0})
        >>> means.values()
        {'loss': 1.5, 'tau': 4.0}
    """

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, row: dict[str, float]) -> None:
        """Take one row into the means."""
        for key, value in row.items():
            self._sums[key] += value
            self._counts[key] += 1

    def values(self) -> dict[str, float]:
        """Return the means so far."""
        return {key: total / self._counts[key] for key, total in self._sums.items()}
