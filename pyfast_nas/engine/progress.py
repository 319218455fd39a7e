"""How a run tells a display where it stands."""

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receives events; drawing them is not the engine's business.

    Every event has ``phase`` (``"search"``, ``"pareto"``, ``"evaluation"`` or ``"train"``) and
    ``kind``:

    - ``start``: of a search and of a training ``epochs`` and ``steps_per_epoch``; of a search also
      ``config``, the content of ``config.json``, and ``parameters`` of the supernet; of an
      evaluation ``networks`` and ``epochs``; of a Pareto front, which has no steps, ``unit``.
    - ``step``, each logging interval: ``epoch`` (from 1), ``step``, ``steps`` (of the whole
      phase), the means of the metrics, ``images_per_second``, ``memory_bytes``, ``seconds_left``.
    - ``epoch``: the line of ``metrics.jsonl`` and that of ``timing.jsonl``, merged.
    - ``network``, of an evaluation: ``group`` (``"searched"`` or ``"random"``), ``index``,
      ``networks``, ``seed``, ``accuracy``, ``loss``, ``parameters``.
    - ``end``: ``seconds``; of an evaluation also the content of ``evaluation.json``.

    What ``update`` raises ends the run and reaches its caller unchanged.
    """

    def update(self, event: Mapping[str, Any]) -> None:
        """Take one event."""


class Silent:
    """A display that shows nothing.

    Example:
        >>> Silent().update({"phase": "search", "kind": "start"})
    """

    def update(self, event: Mapping[str, Any]) -> None:
        """Ignore the event."""
