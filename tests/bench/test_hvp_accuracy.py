"""The table of how accurate finite differences are."""

from benchmarks import hvp_accuracy
from benchmarks.hvp_accuracy import errors, make, table


def test_smooth_operations_obey_the_square_law():
    (first, _), (second, _) = errors(make(True, 0), (1e-1, 1e-2))
    assert first > 30 * second
    assert second < 2e-3


def test_kinks_make_another_quantity():
    (usual, _), (tiny, _) = errors(make(False, 0), (1e-2, 1e-6))
    assert usual > 0.5
    assert tiny < 1e-6


def test_table_has_a_row_for_each_radius(monkeypatch):
    monkeypatch.setattr(hvp_accuracy, "BATCH", 2)
    monkeypatch.setattr(hvp_accuracy, "RADII", (1e-1, 1e-2))
    monkeypatch.setattr(hvp_accuracy, "RADII_IN_FLOAT32", (1e-2,))
    lines = table({"smooth": (True, 0)}).splitlines()
    assert lines[0] == "| radius | smooth |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        *("| 1e-01", "| 1e-02", "| float32, 1e-02")
    ]
