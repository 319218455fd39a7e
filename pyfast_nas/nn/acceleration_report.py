"""What `pyfast_nas.accelerate` did to a model, in words."""

import dataclasses
from collections.abc import Iterator, Sized

__all__ = ["AccelerateReport", "count"]


@dataclasses.dataclass(frozen=True)
class AccelerateReport:
    """What `accelerate` did.

    Attributes:
        replaced: Name of each sum of candidates that was replaced -> how many of them are fused.
        left_alone: Name of each module that looked like a sum of candidates and was left as it
            is -> why.
        plain: Name of each candidate of a replaced module that runs as it stands -> why.
        notes: What else there is to know.
        cells: Name of each cell that runs whole, all edges into a node in one fused node -> what
            of it does. Its edges are among the replaced.

    Example:
        >>> report = AccelerateReport({"cells.0.edge": "2 of 2 candidates"}, {}, {}, ())
        >>> print(report)
        replaced 1 module
          2 of 2 candidates in a fused node: cells.0.edge
    """

    replaced: dict[str, str]
    left_alone: dict[str, str]
    plain: dict[str, str]
    notes: tuple[str, ...]
    cells: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"replaced {count(self.replaced, 'module')}"]
        lines += _grouped({n: f"{what} in a fused node" for n, what in self.replaced.items()})
        whole = f"{count(self.cells, 'cell')} whole, all edges into a node in one fused node"
        for title, names in (
            (whole, self.cells),
            (f"left alone {count(self.left_alone, 'module')}", self.left_alone),
            (f"beside fused nodes {count(self.plain, 'candidate')} as modules", self.plain),
        ):
            if names:
                lines += [title, *_grouped(names)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def count(things: Sized, word: str) -> str:
    """Return how many things there are, in words."""
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def _grouped(reasons: dict[str, str]) -> Iterator[str]:
    """Yield one line for each reason with the names that it holds for."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name or "the model")
    for why, which in names.items():
        more = f" and {len(which) - 3} more" if len(which) > 3 else ""
        yield f"  {why}: {', '.join(which[:3])}{more}"
