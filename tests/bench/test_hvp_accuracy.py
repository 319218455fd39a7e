"""The table of how accurate finite differences are."""

import math

from benchmarks.hvp_accuracy import errors, make, table


def test_smooth_operations_obey_the_square_law():
    (first, _), (second, _) = errors(make(True, 0), (1e-1, 1e-2))
    assert math.log10(first / second) > math.log10(30)
    assert second < 2e-3


def test_kinks_make_another_quantity():
    (usual, _), (tiny, _) = errors(make(False, 0), (1e-2, 1e-6))
    assert usual > 0.5
    assert tiny < 1e-6


def test_table_has_a_row_for_each_radius():
    lines = table({"smooth": (True, 0)}).splitlines()
    assert lines[0] == "| radius | smooth |"
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| 1e-01", "| 1e-02"]
    assert len(lines) == 2 + 5 + 4
