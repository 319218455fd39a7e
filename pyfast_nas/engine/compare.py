"""Is the found architecture better than random ones? An answer that knows its own spread."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from pyfast_nas.errors import ConfigError

__all__ = ["Comparison", "compare"]

# Degrees of freedom and the 97.5 % quantile of Student's distribution.
_QUANTILES = (
    *((0, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (7, 2.365)),
    *((8, 2.306), (9, 2.262), (10, 2.228), (12, 2.179), (15, 2.131), (20, 2.086), (30, 2.042)),
    *((60, 2.000), (120, 1.980), (1000, 1.962)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A difference of mean accuracies beside the size that chance alone would explain.

    Attributes:
        difference: Mean of the searched minus mean of the random, from -1 to 1.
        standard_error: Of that difference.
        verdict: ``"better"``, ``"worse"`` or ``"tie"``.
        sentence: The same for a reader, with the spread.
    """

    difference: float
    standard_error: float
    verdict: str
    sentence: str


def compare(searched: Sequence[float], random: Sequence[float], *, test_samples: int) -> Comparison:
    r"""Compare accuracies of trainings of the found architecture with those of random ones.

    The verdict is a tie unless Welch's test rejects equal means at the 5 % level: the difference
    must exceed its standard error

    .. math:: \sqrt{s_1^2 / n_1 + s_2^2 / n_2}

    times Student's 97.5 % quantile for the Welch-Satterthwaite degrees of freedom, so that a few
    trainings need a larger lead than many. No standard error is taken to be smaller than one test
    sample, and both sides need two trainings or more: one shows no spread.

    Args:
        searched: Accuracies of the found architecture, from 0 to 1, one a training.
        random: Accuracies of random architectures, one each.
        test_samples: Samples on which each accuracy was measured.

    Raises:
        ConfigError: If a side is empty.

    Example:
        >>> result = compare([0.97, 0.98, 0.97], [0.90, 0.93, 0.91], test_samples=1000)
        >>> result.verdict, round(result.difference, 2)
        ('better', 0.06)
        >>> compare([0.97, 0.98], [0.96, 0.98], test_samples=1000).verdict
        'tie'

    References:
        B. L. Welch, "The generalization of 'Student's' problem when several different population
        variances are involved", Biometrika 34, 1947.
    """
    for name, group in (("searched", searched), ("random", random)):
        if not group:
            raise ConfigError(f"compare: {name} must hold at least one accuracy, got 0")
    means = statistics.fmean(searched), statistics.fmean(random)
    spreads = [statistics.stdev(group) if len(group) > 1 else 0.0 for group in (searched, random)]
    difference = means[0] - means[1]
    counts = len(searched), len(random)
    parts = [spread**2 / count for spread, count in zip(spreads, counts, strict=True)]
    error = max(math.sqrt(sum(parts)), 1 / test_samples)
    shows_spread = min(counts) > 1
    bound = error * _student_quantile(_degrees_of_freedom(parts, counts)) if shows_spread else 0.0
    if not shows_spread or abs(difference) <= bound:
        verdict = "tie"
    else:
        verdict = "better" if difference > 0 else "worse"
    found = _described(means[0], spreads[0], len(searched), "training")
    rivals = _described(means[1], spreads[1], len(random), "random architecture")
    points = 100 * difference
    if not shows_spread:
        end = (
            f"The difference of {points:+.2f} points has no verdict: one training shows no spread."
        )
    elif verdict == "tie":
        end = (
            f"The difference of {points:+.2f} points is within what chance explains "
            f"(±{100 * bound:.2f} at the 5 % level): a tie."
        )
    else:
        end = (
            f"The difference of {points:+.2f} points exceeds what chance explains "
            f"(±{100 * bound:.2f} at the 5 % level): the found architecture is {verdict}."
        )
    return Comparison(
        difference=difference,
        standard_error=error,
        verdict=verdict,
        sentence=f"Test accuracy of the found architecture is {found}, against {rivals}. {end}",
    )


def _degrees_of_freedom(parts: Sequence[float], counts: Sequence[int]) -> float:
    """Welch-Satterthwaite degrees of freedom from the squared standard errors of both means."""
    if not any(parts):
        return sum(counts) - 2
    shares = (part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return sum(parts) ** 2 / sum(shares)


def _student_quantile(freedom: float) -> float:
    """Student's 97.5 % quantile at the next lower tabulated degrees of freedom."""
    return next(quantile for least, quantile in reversed(_QUANTILES) if freedom >= least)


def _described(mean: float, spread: float, count: int, what: str) -> str:
    plural = "" if count == 1 else "s"
    deviation = f" ± {100 * spread:.2f}" if count > 1 else ""
    return f"{100 * mean:.2f}{deviation} % over {count} {what}{plural}"
