"""Cost tables: expectations, choices, fits, files."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from pyfast_nas import spaces
from pyfast_nas.costs import CostTable
from pyfast_nas.errors import DataError

ROWS = {"cell": torch.tensor([[0.0, 2.0, 1.0], [0.5, 4.0, 3.0]])}


def test_expectation_is_the_mean_over_all_architectures() -> None:
    table = CostTable("ms", 1.5, ROWS)
    probabilities = torch.rand(2, 3, dtype=torch.float64).softmax(1)
    mean = sum(
        float(probabilities[0, a] * probabilities[1, b])
        * table.of({"cell": torch.eye(3)[[a, b]].bool()})
        for a, b in itertools.product(range(3), repeat=2)
    )
    assert float(table.expected({"cell": probabilities})) == pytest.approx(mean, rel=1e-12)


def test_gradient_of_the_expectation_is_the_softmax_jacobian_times_the_costs() -> None:
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(1)
    (gradient,) = torch.autograd.grad(CostTable("ms", 0.0, ROWS).expected({"cell": p}), logits)
    c = ROWS["cell"].double()
    expected = p * (c - (p * c).sum(1, keepdim=True))
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-12, atol=1e-14)


def test_cost_of_a_genotype_counts_kept_edges_only() -> None:
    space = spaces.DARTS(nodes=1, operations=("none", "skip_connect", "sep_conv_3x3"))
    genotype = space.from_pairs(
        normal=[("sep_conv_3x3", 0), ("skip_connect", 1)],
        reduce=[("skip_connect", 0), ("skip_connect", 1)],
    )
    costs = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 5.0]])
    table = CostTable("ms", 10.0, {"normal": costs, "reduce": 100 * costs})
    assert table.of(genotype, space.candidates) == 10 + 2 + 3 + 100 + 300


def test_fit_recovers_a_linear_table_when_the_ridge_vanishes() -> None:
    true = CostTable("ms", 0.25, ROWS)
    flags = [
        {"cell": torch.eye(3)[[a, b]].bool()} for a, b in itertools.product(range(3), repeat=2)
    ]
    times = [true.of(choice) for choice in flags]
    for ridge, error in ((0.0, 1e-12), (1e-9, 1e-7)):
        fitted = CostTable.fit(flags, times, unit="ms", ridge=ridge)
        assert [fitted.of(choice) for choice in flags] == pytest.approx(times, abs=error)
    shrunk = CostTable.fit(flags, times, unit="ms")
    assert max(abs(shrunk.of(c) - t) for c, t in zip(flags, times, strict=True)) > 0.1


def test_file_holds_the_table_to_the_bit(tmp_path: Path) -> None:
    table = CostTable("ms", 0.1, {"cell": torch.rand(2, 3, dtype=torch.float64)})
    table.save(tmp_path / "costs.json")
    again = CostTable.load(tmp_path / "costs.json")
    assert (again.unit, again.fixed) == ("ms", 0.1)
    assert torch.equal(again.rows["cell"], table.rows["cell"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "x"}, "format must be"),
        ({"rows": [1]}, "must hold unit, fixed and rows"),
        ({"rows": {"cell": [[1.0], [2.0, 3.0]]}}, "must hold unit, fixed and rows"),
        ({"rows": {"cell": [1.0]}}, "must have shape"),
        ({"fixed": float("nan")}, "must be finite"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({**CostTable("ms", 0.0, ROWS).to_dict(), **change}))
    with pytest.raises(DataError, match=words):
        CostTable.load(path)


def test_missing_table_is_named() -> None:
    with pytest.raises(DataError, match="No such file"):
        CostTable.load("/nowhere/costs.json")
    with pytest.raises(ValueError, match="'cell' of shape"):
        CostTable("ms", 0.0, ROWS).expected({"cell": torch.ones(1, 3)})
