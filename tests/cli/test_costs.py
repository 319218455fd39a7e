"""What candidates cost, on the command line: shown, written, read again, refused."""

import json
import re

import pytest

from pyfast_nas import spaces
from pyfast_nas.cli.main import main
from pyfast_nas.costs import CostTable, count, extremes
from pyfast_nas.spaces import Genotype
from tests.tables import write_table

SMALL = spaces.DARTS(
    channels=4, cells=3, nodes=1, image_size=8, operations=("none", "skip_connect", "sep_conv_3x3")
)
WORDS = ["inspect", "--space", "darts", "--channels", "4", "--cells", "3", "--nodes", "1"]
WORDS += ["--image-size", "8", "--operations", "none", "skip_connect", "sep_conv_3x3"]


def test_counts_are_shown_by_edge_with_the_range_of_networks(tmp_path, capsys):
    path = tmp_path / "costs.json"
    assert main([*WORDS, "--cost", "parameters", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    table = count(SMALL.supernet(), (1, 3, 8, 8))["parameters"]
    conv = table.rows["normal"][0, 2]
    cheapest = table.of(extremes(table, SMALL)[0], SMALL.candidates)
    for line in (
        r"space +darts: channels=4, cells=3",
        r"unit +parameters$",
        f"fixed +{table.fixed:,.0f}$",
        r"normal +none skip_connect sep_conv_3x3$",
        f"  0 to 2 +0 +0 +{conv:,.0f}$",
        r"reduce +none skip_connect sep_conv_3x3$",
        rf"cheapest +{cheapest:,.0f}  \(genotype [0-9a-f]{{16}}\)$",
    ):
        assert re.search(line, out, re.MULTILINE), line
    written = CostTable.load(path)
    assert written.to_dict() == table.to_dict() and f"wrote {path}" in out


def test_json_holds_everything_and_a_written_table_says_the_same(tmp_path, capsys):
    path = tmp_path / "costs.json"
    words = [*WORDS, "--json", "--cost"]
    assert main([*words, "multiply-adds", "--output", str(path)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert main([*words, str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == record
    table = CostTable.from_dict(record["table"])
    assert table.unit == "multiply-adds" and record["fit"] is None
    assert record["edges"]["normal"] == [[0, 2], [1, 2]]
    assert record["candidates"]["reduce"][0] == list(SMALL.operations)
    for word in ("cheapest", "costliest"):
        genotype = Genotype.from_dict(record[word]["genotype"])
        assert table.of(genotype, SMALL.candidates) == record[word]["cost"]
    assert record["cheapest"]["cost"] < record["costliest"]["cost"]


def test_latency_is_measured_here(tmp_path, capsys):
    path = tmp_path / "costs.json"
    words = [*WORDS, "--cost", "latency", "--batch-size", "2", "--repeats", "3", "--device", "cpu"]
    assert main([*words, "--output", str(path)]) == 0
    unit = r"^unit +ms \(batch of 2, cpu, 8x8x3\)$"
    assert re.search(unit, capsys.readouterr().out, re.MULTILINE)
    table = CostTable.load(path)
    assert main([*WORDS, "--cost", str(path)]) == 0
    assert re.search(unit, capsys.readouterr().out, re.MULTILINE)
    other = [*WORDS[:-1], "max_pool_3x3", "--cost", str(path)]
    assert main(other) == 2
    assert "--cost must be a table of the candidates" in capsys.readouterr().err
    assert table.unit == "ms" and table.fixed > 0 and not table.rows["normal"][:, 0].any()
    assert bool((table.rows["normal"][:, 2] > table.rows["normal"][:, 1]).all())


def test_a_column_of_a_benchmark_is_fitted(tmp_path, capsys):
    path = write_table(tmp_path / "cells.csv", columns=("x_latency", "y"))
    words = ["inspect", "--space", "nas-bench-201", "--cost", f"{path}:x_latency"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert re.search(r"^fit +15,625 cells, [\d.]+ % of the variance; error ", out, re.MULTILINE)
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["table"]["unit"] == "ms" and record["fit"]["networks"] == 15_625


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--cost paramters", 2, "--cost must be one of latency, .* got 'paramters'; did you mean"),
        ("--cost parameters --space toy", 2, "--space must be one of images .* got toy"),
        ("--cost latency --space toy", 2, "--space must be one of images .* got toy"),
        ("--space galaxy", 2, "--space must be one of darts, .*got 'galaxy'"),
        ("--cost parameters --batch-size 3", 2, "--batch-size goes with --cost latency only"),
        ("--cost gone.json", 2, "--cost must be one of latency, .* got 'gone.json': no such file"),
        ("--cost latency --batch-size 0", 2, "--batch-size must be at least 1, got 0"),
        ("--cost latency --cells 1 --repeats 0", 2, "repeats must be an integer from 1, got 0"),
        ("--cost latency --device tpu", 2, "must be 'auto' or one of 'cpu'"),
        ("--cost gone.csv:a", 2, "--space must be nas-bench-201 where --cost names a column"),
        ("--cost gone.csv:a --space nas-bench-201", 3, "table 'gone.csv': No such file"),
        ("--cost broken.json", 3, "not a cost table: .*in 'broken.json'"),
        ("--cost other.json", 2, "--cost must be a table with a cost for every .*'other.json'"),
        ("--cost parameters --cells 0", 2, "--cells must be an integer at least 1, got 0"),
        ("runs/a --cost parameters", 2, "unexpected argument 'runs/a'"),
        (
            "--cost parameters --cells 1 --nodes 1 --output missing/costs.json",
            2,
            "--output must be a file in a folder that exists, got missing/costs.json; make",
        ),
        ("--cost parameters --cells 1 --output .", 2, "--output must be a file, got the folder"),
    ],
)
def test_refusals(words, code, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    CostTable("ms", 1.0, {"cell": [[1.0]]}).save(tmp_path / "other.json")
    assert main(["inspect", *words.split()]) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0].startswith("error: ") and re.search(message, lines[0]), captured.err
    assert len(lines) == (2 if code == 2 else 1) and not captured.out
    assert {path.name for path in tmp_path.iterdir()} == {"broken.json", "other.json"}


def test_help_of_both_forms(capsys):
    assert main(["inspect", "--help"]) == 0
    assert "inspect --cost latency --help" in capsys.readouterr().out
    assert main(["inspect", "--cost", "latency", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--batch-size", "--device", "--channels", "--image-size", "--output"):
        assert option in out


def test_a_table_that_cannot_be_written_is_named(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CostTable, "save", fail)
    path = tmp_path / "costs.json"
    assert main([*WORDS, "--cost", "parameters", "--output", str(path)]) == 4
    error = capsys.readouterr().err
    assert f"--output {path} cannot be written: No space left on device; name another" in error


def test_usage_names_both_forms(capsys):
    assert main(["inspect"]) == 2
    assert "inspect PATH | --cost COST --space SPACE" in capsys.readouterr().err
