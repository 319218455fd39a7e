"""Cost tables: expectations, choices, fits, files."""

import dataclasses
import itertools
import json
import os
import re
from pathlib import Path

import pytest
import torch

from pyfast_nas import spaces
from pyfast_nas.costs import CostTable
from pyfast_nas.errors import ConfigError, DataError, GenotypeError

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
        ({"rows": [1]}, "rows must be lists of numbers by row and table, got list"),
        ({"rows": {"cell": [[1.0], [2.0, 3.0]]}}, "rows of equally many numbers"),
        ({"rows": {"cell": [1.0]}}, "rows must be lists of numbers"),
        ({"rows": {"cell": [[True]]}}, "rows must be lists of numbers"),
        ({"rows": {"cell": [["1"]]}}, "rows must be lists of numbers"),
        ({"rows": {"cell": []}}, "must have shape"),
        ({"rows": {}}, "at least one table, got none"),
        ({"rows": None}, "got NoneType"),
        ({"fixed": float("nan")}, "must be finite"),
        ({"fixed": "1"}, "fixed must be a number, got str"),
        ({"fixed": True}, "fixed must be a number, got bool"),
        ({"fixed": 10**400}, "at most 18 digits"),
        ({"fixed": 1e30}, "below 1e\\+30 together"),
        ({"rows": {"cell": [[6e29, -6e29]]}}, "below 1e\\+30 together"),
        ({"unit": 3}, "unit must be text, got int"),
        ({"unit": ""}, "unit must be text of 1 to 200 characters"),
        ({"unit": "m" * 201}, "unit must be text of 1 to 200 characters"),
        ({"about": "m" * 201}, "about must be text of 0 to 200 characters"),
        ({"candidates": {"cell": [["a", 1]]}}, "candidates must be lists of names"),
        ({"candidates": {"cell": [["a", "b"]]}}, "candidates must have the shapes of the rows"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, change: dict, words: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({**CostTable("ms", 0.0, ROWS).to_dict(), **change}))
    with pytest.raises(DataError, match=words) as caught:
        CostTable.load(path)
    message = str(caught.value)
    assert len(re.findall("cost ?table:", message, re.I)) == 1 and "costs.json" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "costs.json' is empty; write it again, with inspect --cost --output"),
        ("\n", "is empty"),
        ("[" * 100_000, "at most 16 deep"),
        ('{"fixed": ' + "9" * 5000 + "}", "at most 18 digits"),
        ("{", "not a cost table: Expecting"),
        ('{"unit": "ms", "unit": "s"}', "duplicate key 'unit'"),
    ],
)
def test_text_that_is_no_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        CostTable.load(path)
    assert str(caught.value).lower().count("cost table") <= 2 and "Genotype" not in str(
        caught.value
    )


def test_what_is_no_table_is_refused_at_construction() -> None:
    for fixed, rows, words in (
        (0.0, {}, "at least one table"),
        (0.0, {"cell": [[10**400]]}, "numbers of reasonable size"),
        (0.0, {"cell": [[torch.inf]]}, "must be finite"),
        (10**400, ROWS, "must be finite"),
        ("a", ROWS, "fixed must be a number, got 'a'"),
    ):
        with pytest.raises(DataError, match=words):
            CostTable("ms", fixed, rows)


def test_large_costs_are_no_matter_of_float32() -> None:
    assert CostTable("operations", 2.0**60, {"cell": [[1e29]]}).fixed == 2**60


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch, call: str) -> None:
    path = tmp_path / "costs.json"
    CostTable("ms", 1.0, ROWS).save(path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        CostTable("ms", 2.0, ROWS).save(path)
    monkeypatch.undo()
    assert CostTable.load(path).fixed == 1.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["costs.json"]


def test_half_precision_adds_up_in_single() -> None:
    table = CostTable("parameters", 0.0, {"cell": torch.full((4, 2), 30_000.0)})
    cost = table.expected({"cell": torch.full((4, 2), 0.5, dtype=torch.float16)})
    assert cost.dtype == torch.float32 and float(cost) == 120_000


def test_a_genotype_needs_the_names_of_its_own_space() -> None:
    space, toy = spaces.NASBench201(), spaces.Toy().optimum()
    table = CostTable("ms", 1.0, {"cell": torch.rand(6, 5)})
    genotype = space.random_genotype(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="candidates must be names by table"):
        table.of(genotype)
    for other in (toy, spaces.DARTS_V2):
        with pytest.raises(GenotypeError, match="choices_of: "):
            table.of(other, space.candidates)
    known = dataclasses.replace(table, candidates=space.candidates)
    assert known.of(genotype) == table.of(genotype, space.candidates)


def test_names_are_held_in_the_file_and_checked(tmp_path: Path) -> None:
    candidates = {"cell": (("none", "skip", "conv"), ("none", "pool", "conv"))}
    table = CostTable("ms", 1.0, ROWS, candidates, about="batch of 24, cpu")
    table.save(tmp_path / "costs.json")
    again = CostTable.load(tmp_path / "costs.json")
    assert (again.candidates, again.about) == (candidates, "batch of 24, cpu")
    again.check(candidates, "cost")
    others = {"cell": (("none", "skip", "conv"), ("none", "conv", "pool"))}
    with pytest.raises(ConfigError, match=r"cost must be .* in row 1 of 'cell', got .* from 'f'"):
        again.check(others, "cost", "f")
    CostTable("ms", 1.0, ROWS).check(others, "cost")


def test_a_negative_ridge_is_refused() -> None:
    for ridge in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="ridge must be a finite number at least 0"):
            CostTable.fit([{"cell": torch.eye(2)}], [1.0], unit="ms", ridge=ridge)


def test_missing_table_is_named() -> None:
    with pytest.raises(DataError, match="No such file"):
        CostTable.load("/nowhere/costs.json")
    with pytest.raises(ValueError, match="'cell' of shape"):
        CostTable("ms", 0.0, ROWS).expected({"cell": torch.ones(1, 3)})
