"""Numbers that show whether a search is alive: entropy, margins, skip connections."""

import math
from collections.abc import Mapping
from typing import Any

from pyfast_nas.errors import DivergenceError
from pyfast_nas.spaces.base import Genotype, SearchSpace, probabilities
from pyfast_nas.typing import Alphas

__all__ = ["alpha_rows", "collapsed", "health", "require_finite"]

Candidates = Mapping[str, tuple[tuple[str, ...], ...]]


def health(space: SearchSpace, alphas: Alphas, genotype: Genotype) -> dict[str, Any]:
    """Return entropy and margin of the alphas, and the skip connections of the genotype.

    ``entropy`` is the mean over all rows of the entropy divided by that of a uniform choice, from
    0 (decided) to 1 (undecided); ``margin`` is the mean gap between the two largest probabilities
    of a row; ``skip_count`` counts the kept skip connections per cell.

    Example:
        >>> import torch
        >>> from pyfast_nas.spaces import Toy
        >>> numbers = health(Toy(), {"cell": torch.zeros(2, 4)}, Toy().optimum())
        >>> numbers["entropy"], numbers["margin"], numbers["skip_count"]
        (1.0, 0.0, {'cell': 0})
    """
    rows = [row for table in probabilities(alphas, space.candidates).values() for row in table]
    choices = [sorted(row, reverse=True) for row in rows if len(row) > 1]
    entropies = [
        -sum(p * math.log(p) for p in row if p > 0) / math.log(len(row)) for row in choices
    ]
    margins = [row[0] - row[1] for row in choices]
    count = max(len(choices), 1)
    return {
        "entropy": math.fsum(entropies) / count,
        "margin": math.fsum(margins) / count,
        "skip_count": {
            table: sum(edge.op == "skip_connect" for edge in edges)
            for table, edges in genotype.cells.items()
        },
    }


def collapsed(genotype: Genotype, limit: float) -> tuple[str, ...]:
    """Return one sentence for each cell whose share of skip connections exceeds the limit.

    Example:
        >>> from pyfast_nas.spaces import DARTS
        >>> pairs = [("skip_connect", 0), ("skip_connect", 1)]
        >>> collapsed(DARTS(nodes=1).from_pairs(normal=pairs, reduce=pairs), 0.5)[0]
        "the 'normal' cell has collapsed: 2 of its 2 edges are skip connections"
    """
    sentences = []
    for table, edges in genotype.cells.items():
        skips = sum(edge.op == "skip_connect" for edge in edges)
        if skips > limit * len(edges):
            sentences.append(
                f"the {table!r} cell has collapsed: {skips} of its {len(edges)} edges are skip "
                "connections"
            )
    return tuple(sentences)


def alpha_rows(alphas: Alphas, candidates: Candidates) -> dict[str, list[list[float | None]]]:
    """Return logits as lists; places past the end of a shorter row are ``None``.

    Example:
        >>> import torch
        >>> alpha_rows({"cell": torch.zeros(2, 2)}, {"cell": (("a", "b"), ("a",))})
        {'cell': [[0.0, 0.0], [0.0, None]]}
    """
    result = {}
    for table, rows in candidates.items():
        values = alphas[table].detach().cpu().tolist()
        result[table] = [
            [value if place < len(names) else None for place, value in enumerate(row)]
            for row, names in zip(values, rows, strict=True)
        ]
    return result


def require_finite(alphas: Alphas, candidates: Candidates, step: int) -> None:
    """Raise if an architecture parameter is NaN or infinite.

    Raises:
        DivergenceError: Naming the step, the table and the place.
    """
    for table, rows in alpha_rows(alphas, candidates).items():
        for index, row in enumerate(rows):
            for place, value in enumerate(row):
                if value is not None and not math.isfinite(value):
                    raise DivergenceError(
                        f"search: alphas[{table!r}] must stay finite, got {value} at row {index}, "
                        f"candidate {place} at step {step}"
                    )
