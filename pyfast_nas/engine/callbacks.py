"""What may look on at the end of every epoch of a search, and end it or send it back."""

import dataclasses
from typing import Any, Protocol

from pyfast_nas.algorithms.base import SearchAlgorithm
from pyfast_nas.spaces.base import Genotype
from pyfast_nas.typing import Batch

__all__ = ["Callback", "EpochEnd", "GoBack", "Stop"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """A search after an epoch.

    Attributes:
        epoch: How many epochs are done, from 1.
        algorithm: What searches; its supernet is ``algorithm.supernet``.
        genotype: The architecture as of now.
        valid: The last validation batch.
        row: The epoch's line of ``metrics.jsonl``; numbers put in here are written.
    """

    epoch: int
    algorithm: SearchAlgorithm
    genotype: Genotype
    valid: Batch
    row: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """End the search, with the architecture parameters that it had after ``epoch``.

    Attributes:
        epoch: Epoch whose architecture is the result, at most the one that is done.
        reason: One sentence for the warnings of the result.
    """

    epoch: int
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoBack:
    """Count on from ``epoch``, to whose state the callback has brought algorithm and supernet.

    Attributes:
        epoch: Epoch that counts as the last one done.
        reason: One sentence for the warnings of the result.
    """

    epoch: int
    reason: str


class Callback(Protocol):
    """Looks on; it is called once an epoch, after the epoch's numbers have been gathered."""

    def __call__(self, end: EpochEnd) -> Stop | GoBack | None:
        """Return what the search shall do, or None to go on."""
