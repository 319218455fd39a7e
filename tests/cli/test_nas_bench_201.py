"""Every command on NAS-Bench-201, with a table of accuracies."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from pyfast_nas.cli import train
from pyfast_nas.cli.main import main
from pyfast_nas.spaces import Genotype, NASBench201
from tests.tables import write_table

SPACE = NASBench201()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("tables") / "cells.csv")


@pytest.fixture(scope="module")
def cell_run(tmp_path_factory, table):
    """Run folder of a tiny search with a comparison."""
    folder = tmp_path_factory.mktemp("cells") / "run"
    words = ["search", "--space", "nas-bench-201", "--channels", "2", "--epochs", "2"]
    words += ["--batch-size", "128", "--compare", "2", "--compare-seeds", "2"]
    words += ["--train-epochs", "1", "--train-channels", "2", "--table", str(table)]
    assert main([*words, "--output", str(folder)]) == 0
    return folder


def test_search_leaves_a_whole_run_folder(cell_run):
    ElementTree.parse(cell_run / "cell.svg")
    page = (cell_run / "report.html").read_text()
    for words in ("Among all architectures", "of 15,625", "value of the derived one in the table"):
        assert words in page
    assert json.loads((cell_run / "config.json").read_text())["space"]["cells"] == 1


def test_search_says_where_the_cell_stands(tmp_path, table, capsys):
    words = ["search", "--space", "nas-bench-201", "--channels", "2", "--epochs", "1"]
    words += ["--batch-size", "128", "--compare", "0", "--table", str(table)]
    assert main([*words, "--output", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    arch = SPACE.to_string(Genotype.load(tmp_path / "a" / "genotype.json"))
    for line in (
        r"epoch 1/1 .* table \d\d\.\d\d, rank \d+",
        re.escape(arch),
        r"table valid +[\d.]+ \(c10_val_e12\), rank [\d,]+ of 15,625, [\d.]+ below the best",
        r"table test +[\d.]+ \(c10_test_e200\), rank",
    ):
        assert re.search(line, out), line


def test_json_and_chosen_columns(tmp_path, capsys):
    path = write_table(tmp_path / "t.csv", columns=("x", "y"))
    words = ["search", "--space", "nas-bench-201", "--channels", "2", "--epochs", "0", "--json"]
    words += ["--compare", "0", "--table", str(path), "--table-columns", "x", "y"]
    assert main([*words, "--output", str(tmp_path / "a")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["table"]["test"]["column"] == "y" and record["table"]["valid"]["best"] == 80
    assert main(["inspect", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == record["table"]


def test_inspect_derive_and_plot(cell_run, tmp_path, capsys):
    arch = SPACE.to_string(Genotype.load(cell_run / "genotype.json"))
    assert main(["inspect", str(cell_run)]) == 0
    out = capsys.readouterr().out
    assert arch in out and re.search(r"table +test [\d.]+ \(c10_test_e200\), rank", out)
    assert main(["inspect", str(cell_run / "genotype.json")]) == 0
    assert arch in capsys.readouterr().out
    assert main(["derive", str(cell_run)]) == 0
    assert arch in capsys.readouterr().out
    start = tmp_path / "start.json"
    assert main(["derive", str(cell_run), "--epoch", "0", "--output", str(start)]) == 0
    SPACE.check(Genotype.load(start))
    capsys.readouterr()
    for format, words in (("svg", "<svg"), ("dot", "digraph"), ("mermaid", "flowchart")):
        assert main(["plot", str(cell_run), "--format", format]) == 0
        assert capsys.readouterr().out.startswith(words)


def test_report_needs_no_table(cell_run, capsys):
    """The page is made of the folder's files: the table may be gone by then."""
    before = (cell_run / "report.html").read_bytes()
    assert main(["report", str(cell_run)]) == 0
    assert (cell_run / "report.html").read_bytes() == before


def test_train_takes_the_sizes_of_the_space(cell_run, tmp_path, capsys):
    options = train.parse([str(cell_run / "genotype.json"), "--data", "cifar10:x"])
    assert (options.config.channels, options.config.cells, options.config.cutout) == (16, 5, 0)
    options = train.parse([str(cell_run), "--data", "cifar10:x", "--channels", "36"])
    assert (options.config.channels, options.config.cells, options.config.epochs) == (36, 5, 200)
    words = ["train", str(cell_run), "--epochs", "1", "--channels", "2"]
    assert main([*words, "--output", str(tmp_path / "final")]) == 0
    assert re.search(r"test accuracy +\d", capsys.readouterr().out)
    assert (tmp_path / "final" / "network.pt2").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--table gone.csv", 3, "table 'gone.csv': No such file or directory; name the file"),
        ("--space darts --table {}", 2, "table must go with a space .* got 'darts'"),
        ("--table-columns a b", 2, "table.columns must go with a table"),
        ("--table {} --table-columns a b", 3, "must have the column 'a'; it has 'c10_val_e12"),
        ("--nodes 3", 2, "--nodes belongs to the space 'darts', not to 'nas-bench-201'"),
        ("--data toy", 2, "image_size must be a multiple of 4"),
    ],
)
def test_refusals(words, code, message, table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = [] if "--space" in words else ["--space", "nas-bench-201"]
    assert main(["search", *space, *words.format(table).split()]) == code
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith("error: ") and re.search(message, error), error
    assert not list(tmp_path.iterdir())
