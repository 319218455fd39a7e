"""The verdict against random architectures, on planted numbers."""

import math

import pytest

from pyfast_nas.engine import compare
from pyfast_nas.errors import ConfigError


def test_clear_difference_is_better_or_worse():
    high, low = [0.95, 0.96, 0.955], [0.80, 0.82, 0.81, 0.83]
    assert compare(high, low, test_samples=1000).verdict == "better"
    assert compare(low, high, test_samples=1000).verdict == "worse"


def test_difference_within_the_spread_is_a_tie_and_says_so():
    result = compare([0.95, 0.93, 0.97], [0.94, 0.96, 0.92, 0.90], test_samples=1000)
    assert result.difference > 0
    assert result.verdict == "tie"
    assert "a tie" in result.sentence and "better" not in result.sentence


def test_standard_error_is_welchs():
    # Variances 0.0001 over 3 and 0.0004 over 2, by hand.
    result = compare([0.90, 0.91, 0.92], [0.50, 0.50 + 0.02 * math.sqrt(2)], test_samples=10**6)
    assert result.standard_error == pytest.approx(math.sqrt(0.0001 / 3 + 0.0004 / 2))
    assert result.difference == pytest.approx(0.91 - 0.50 - 0.01 * math.sqrt(2))


def test_two_trainings_a_side_need_students_quantile():
    spread = [0.50, 0.52]  # standard error 0.01 each side, two degrees of freedom
    error = math.sqrt(2) * 0.01
    for factor, verdict in ((4.30, "tie"), (4.31, "better")):
        shifted = [value + factor * error for value in spread]
        assert compare(shifted, spread, test_samples=10**6).verdict == verdict


def test_unequal_spreads_have_welchs_degrees_of_freedom():
    # Nearly all of the variance is on the side of three: two degrees of freedom, by hand 2.0004.
    rivals, steady = [0.50, 0.52, 0.54], [0.60, 0.6001, 0.6002, 0.6001]
    error = math.sqrt(0.0004 / 3 + 0.5 * 1.3333333e-8 / 4)
    for factor, verdict in ((4.28, "tie"), (4.32, "better")):
        shifted = [0.52 + factor * error + (value - 0.6001) for value in steady]
        assert compare(shifted, rivals, test_samples=10**6).verdict == verdict


def test_one_image_more_is_no_win_where_nothing_varies():
    # Three equal results and a lead of one image of 355: zero spread must not turn it into a win.
    result = compare([0.98 + 1 / 355] * 3, [0.98] * 5, test_samples=355)
    assert result.verdict == "tie"
    assert result.standard_error == pytest.approx(1 / 355)


def test_one_training_shows_no_spread():
    for searched, random in (([0.99], [0.1, 0.2]), ([0.99, 0.98], [0.1]), ([0.99], [0.1])):
        result = compare(searched, random, test_samples=1000)
        assert result.verdict == "tie"
        assert "no verdict" in result.sentence


def test_sentence_gives_both_means_and_spreads():
    sentence = compare([0.97, 0.98, 0.99], [0.90, 0.92], test_samples=1000).sentence
    assert "98.00 ± 1.00 % over 3 trainings" in sentence
    assert "91.00 ± 1.41 % over 2 random architectures" in sentence


@pytest.mark.parametrize(("searched", "random"), [([], [0.5]), ([0.5], [])])
def test_empty_side_is_refused(searched, random):
    with pytest.raises(ConfigError, match="at least one accuracy, got 0"):
        compare(searched, random, test_samples=10)
