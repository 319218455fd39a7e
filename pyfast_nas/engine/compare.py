"""Is the found architecture better than random ones? An answer that knows its own spread."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from pyfast_nas.errors import ConfigError

__all__ = ["Comparison", "compare"]


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

    The verdict is a tie unless the difference exceeds two standard errors,

    .. math:: \sqrt{s_1^2 / n_1 + s_2^2 / n_2},

    where no standard error is taken to be smaller than one test sample, and unless both sides
    have two trainings or more: one shows no spread.

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
    error = math.sqrt(spreads[0] ** 2 / len(searched) + spreads[1] ** 2 / len(random))
    error = max(error, 1 / test_samples)
    shows_spread = min(len(searched), len(random)) > 1
    if not shows_spread or abs(difference) <= 2 * error:
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
            f"The difference of {points:+.2f} points is within two standard errors "
            f"({200 * error:.2f}): a tie."
        )
    else:
        end = (
            f"The difference of {points:+.2f} points exceeds two standard errors "
            f"({200 * error:.2f}): the found architecture is {verdict}."
        )
    return Comparison(
        difference=difference,
        standard_error=error,
        verdict=verdict,
        sentence=f"Test accuracy of the found architecture is {found}, against {rivals}. {end}",
    )


def _described(mean: float, spread: float, count: int, what: str) -> str:
    plural = "" if count == 1 else "s"
    deviation = f" ± {100 * spread:.2f}" if count > 1 else ""
    return f"{100 * mean:.2f}{deviation} % over {count} {what}{plural}"
