"""What searches find on NAS-Bench-201: one small search, and the page that is made of several."""

import json

import pytest

from benchmarks import search_quality
from pyfast_nas.algorithms import ALGORITHMS
from tests.tables import write_table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("tables") / "cells.csv")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_search_is_judged_by_the_table(tmp_path, table):
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    words = ["--data", "digits", "--table", str(table), "--seeds", "1", "--epochs", "1"]
    words += ["--channels", "2", "--batch-size", "128", "--methods", "DARTS, second order"]
    assert search_quality.main([*words, "--results", str(results), "--page", str(page)]) == 0
    content = json.loads(results.read_text())
    (row,) = content["rows"]
    assert row["alpha_steps"] == row["images"] // 128 > 0
    assert 0.9 < row["entropy"] <= 1 and len(row["margins"]) == 6 and row["step_seconds"] > 0
    # The made-up table falls along the order of cells, from 90 for the first.
    assert row["table"]["test"]["rank"] == 1 + round((90 - row["table"]["test"]["value"]) * 1000)
    assert content["chance"]["best"] == 90 and row["memory_bytes"] > 1 << 20
    assert page.read_text() == search_quality.page(content)


def test_page():
    def row(method, seed, value, skips):
        split = {"column": "c", "value": value, "rank": 7, "best": 95.0, "regret": 95 - value}
        return {
            "method": method,
            "seed": seed,
            "images": 100,
            "arch": "|none~0|",
            "table": {"valid": split, "test": split},
            "alpha_steps": 12,
            "entropy": 0.5,
            "margins": [0.25, 0.125],
            "skips": skips,
            "step_seconds": 0.5,
            "memory_bytes": 3 << 20,
        }

    content = {
        "data": "cifar10",
        "sizes": {"epochs": 2, "channels": 4, "cells": 1, "batch_size": 8, "alpha_lr": 0.01},
        "columns": {"valid": "c", "test": "c"},
        "chance": {"best": 95.0, "mean": 80.0, "deviation": 10.0},
        "device": "a machine",
        "threads": 2,
        "torch": "2.13",
        "commit": "abc",
        "rows": [row("iDARTS", 0, 90.0, 1), row("iDARTS", 1, 80.0, 6)],
    }
    page = search_quality.page(content)
    line = (
        "| iDARTS | 85.00 ± 7.07 | 90.00, 80.00 | 90.00, 80.00 | 1, 6 | 12 | 0.500, 0.500 | 0.500 "
        "| 3 |"
    )
    assert line in page.splitlines()
    assert "| iDARTS | 1 | `\\|none~0\\|` | 7 | 15.00 | 0.250, 0.125 |" in page.splitlines()
    assert "a rate of 0.01" in page and "best cell has 95.00 %" in page


def test_methods_are_searches_of_the_package():
    for words in search_quality.METHODS.values():
        assert words[0] == "--algorithm" and words[1] in ALGORITHMS
