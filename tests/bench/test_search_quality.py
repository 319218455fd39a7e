"""What searches find on NAS-Bench-201: one small search, and the page that is made of several."""

import itertools
import json

import numpy as np
import pytest

from benchmarks import quality_page, search_quality
from pyfast_nas.algorithms import ALGORITHMS
from pyfast_nas.costs import CostTable
from pyfast_nas.spaces import AccuracyTable, NASBench201
from tests.tables import write_table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("tables") / "cells.csv")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_search_is_judged_by_the_table(tmp_path, table):
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    words = ["--data", "digits", "--table", str(table), "--seeds", "1", "--epochs", "1"]
    words += ["--channels", "2", "--batch-size", "128", "--jobs", "2"]
    words += ["--methods", "random search", "DARTS, second order"]
    assert search_quality.main([*words, "--results", str(results), "--page", str(page)]) == 0
    content = json.loads(results.read_text())
    study = content["studies"]["epochs"]
    row, other = study["rows"]  # in the order of the page, whichever was ready first
    assert row["method"] == "DARTS, second order" and other["alpha_steps"] == 0
    assert study["jobs"] == 2
    assert row["alpha_steps"] == row["images"] // 128 > 0
    assert 0.9 < row["entropy"] <= 1 and len(row["margins"]) == 6 and row["step_seconds"] > 0
    # The made-up table falls along the order of cells, from 90 for the first.
    assert row["table"]["test"]["rank"] == 1 + round((90 - row["table"]["test"]["value"]) * 1000)
    assert study["chance"]["best"] == 90 and row["memory_bytes"] > 1 << 20
    assert page.read_text() == quality_page.page(content)


def test_page():
    def row(method, seed, value, skips):
        split = {"column": "c", "value": value, "rank": 7, "best": 95.0, "regret": 95 - value}
        return {
            "method": method,
            "seed": seed,
            "images": 100,
            "arch": "|none~0|",
            "epochs": 2,
            "latency": 1.5 + seed,
            "correlation": 0.25 if method == "iDARTS" else None,
            "seconds": 61.0,
            "table": {"valid": split, "test": split},
            "alpha_steps": 12,
            "entropy": 0.5,
            "margins": [0.25, 0.125],
            "skips": skips,
            "step_seconds": 0.5,
            "memory_bytes": 3 << 20,
        }

    sizes = {"channels": 4, "cells": 1, "batch_size": 8, "alpha_lr": 0.01}
    study = {
        "data": "cifar10",
        "columns": {"valid": "c", "test": "c"},
        "chance": {"best": 95.0, "mean": 80.0, "deviation": 10.0},
        "device": "a machine",
        "jobs": 2,
        "threads": 1,
        "torch": "2.13",
        "commit": "abc",
    }
    by_time = {"sizes": {"minutes": 1.5, **sizes, "alpha_lr": None}, "latency": "gpu"}
    content = {
        "studies": {
            "epochs": study
            | {"sizes": {"epochs": 2, **sizes}}
            | {"rows": [row("iDARTS", 0, 90.0, 1), row("iDARTS", 1, 80.0, 6)]},
            "minutes": study | by_time | {"rows": [row("random search", 0, 90.0, 1)]},
        }
    }
    page = quality_page.page(content)
    by_epochs, by_minutes = page.split("## Equal time")
    line = (
        "| iDARTS | 85.00 ± 7.07 | 90.00, 80.00 | 90.00, 80.00 | 5.00, 15.00 | 0.25, 0.25 | 1, 6 "
        "| 12 | 0.500, 0.500 | 2 | 0.500 | 61 | 3 |"
    )
    assert line in by_epochs.splitlines()
    assert "| iDARTS | 1 | `\\|none~0\\|` | 7 | 15.00 | 0.250, 0.125 |" in by_epochs.splitlines()
    assert "2 epochs each, alphas at a rate of 0.01" in by_epochs
    assert "a machine, 1 thread a search, 2 searches at a time, torch 2.13" in by_epochs
    assert "best cell has 95.00 %" in by_epochs and "gpu" not in by_epochs
    assert "1.5 minutes each, alphas at the rate of each paper" in by_minutes
    (line,) = (line for line in by_minutes.splitlines() if line.startswith("| random search | 90"))
    assert line.endswith("| 61 | 3 | 1.50 |") and "| 5.00 |  | 1 |" in line


def test_correlation_is_spearmans():
    generator = np.random.default_rng(0)
    rows, values = generator.dirichlet(np.ones(5), 6), generator.random(5**6)
    scores = [np.log(picks).sum() for picks in itertools.product(*rows)]
    places = [np.argsort(np.argsort(some)) for some in (scores, values)]
    found = search_quality.correlation(rows.tolist(), values)
    assert found == pytest.approx(np.corrcoef(*places)[0, 1], abs=1e-6)
    assert search_quality.correlation(rows.tolist(), np.array(scores)) == pytest.approx(1.0)
    assert search_quality.correlation(rows.tolist(), -np.array(scores)) == pytest.approx(-1.0)


def test_a_table_is_read_in_the_order_of_the_space():
    cells = list(NASBench201().strings())
    numbers = [str(number) for number in range(len(cells))]
    backwards = AccuracyTable("here", {"arch": cells[::-1], "test": numbers[::-1]})
    assert (search_quality._in_order(backwards, "test") == np.arange(5**6)).all()


def test_methods_are_searches_of_the_package():
    for words in search_quality.METHODS.values():
        assert words[0] == "--algorithm" and words[1] in ALGORITHMS
    with_costs = {m for m in search_quality.METHODS if "latency" in m}
    assert set(search_quality._methods("minutes", True)) - with_costs == set(
        search_quality._methods("minutes", False)
    )
    assert set(search_quality.STUDIES["epochs"]) <= set(search_quality.METHODS)


def test_costs_are_fitted_to_the_table_of_latencies(tmp_path):
    cells = list(NASBench201().strings())
    numbers = [str(1 + cell.count("nor_conv_3x3")) for cell in cells]
    measured = AccuracyTable("here", {"arch": cells, "gpu_latency": numbers})
    words = search_quality.METHODS["ProxylessNAS, latency"]
    words = search_quality._with_costs(words, measured, "gpu_latency", tmp_path / "costs.json")
    assert words[3] == str(tmp_path / "costs.json") and words[-2:] == ["--cost-reference", "2.2"]
    costs = CostTable.load(tmp_path / "costs.json")
    assert costs.rows["cell"][:, 3].tolist() == pytest.approx([1.0] * 6, abs=1e-5)
    assert costs.fixed == pytest.approx(1.0, abs=1e-4)


def test_the_page_is_that_of_the_committed_results():
    content = json.loads(search_quality.RESULTS.read_text())
    assert search_quality.PAGE.read_text() == quality_page.page(content)
    assert {row["method"] for row in content["studies"]["epochs"]["rows"]} == set(
        search_quality.STUDIES["epochs"]
    )
