"""The Pareto front on the command line."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from pyfast_nas.cli.main import main
from pyfast_nas.spaces import Genotype

SEARCH = ["search", "--space", "nas-bench-201", "--channels", "2", "--epochs", "1"]
SEARCH += ["--batch-size", "128", "--compare", "0", "--pareto-cost", "parameters"]
SEARCH += ["--pareto-samples", "6", "--pareto-images", "128"]


@pytest.fixture(scope="module")
def priced_run(tmp_path_factory):
    """Run folder of a tiny search that ends in a Pareto front."""
    folder = tmp_path_factory.mktemp("pareto") / "run"
    assert main([*SEARCH, "--output", str(folder)]) == 0
    return folder


def test_search_ends_in_the_front(tmp_path, capsys):
    folder = tmp_path / "a"
    assert main([*SEARCH, "--output", str(folder)]) == 0
    out = capsys.readouterr().out
    record = json.loads((folder / "pareto.json").read_text())
    front = [row for row in record["architectures"] if row["on_front"]]
    assert "scoring architectures against their cost (parameters)" in out
    assert f"pareto        {len(front)} of 7 architectures on the front; " in out
    lines = re.findall(r"^ {14} *([\d.]+) % +([\d,]+) parameters  (\w{16})  (.+)$", out, re.M)
    shown = [(name, float(a), c) for a, c, name, told in lines if "not on the front" not in told]
    assert shown == [
        (row["hash"], pytest.approx(100 * row["accuracy"], abs=0.005), f"{row['cost']:,.0f}")
        for row in front
    ]
    assert sum(told.startswith("found, epoch 1") for *_, told in lines) == 1
    assert "pareto.svg" in out
    ElementTree.parse(folder / "pareto.svg")
    assert "Accuracy against cost" in (folder / "report.html").read_text()


def test_json_holds_it_whole(tmp_path, capsys):
    words = [*SEARCH, "--json", "--output", str(tmp_path / "a")]
    assert main(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["pareto"] == json.loads((tmp_path / "a" / "pareto.json").read_text())
    assert str(tmp_path / "a" / "pareto.svg") in record["pictures"]


def test_report_and_plot_draw_it_from_the_folder(priced_run, tmp_path, capsys):
    before = (priced_run / "pareto.svg").read_bytes()
    (priced_run / "pareto.svg").unlink()
    assert main(["report", str(priced_run)]) == 0
    assert (priced_run / "pareto.svg").read_bytes() == before
    capsys.readouterr()
    assert main(["plot", str(priced_run), "--pareto"]) == 0
    assert capsys.readouterr().out.encode() == before
    assert main(["plot", str(priced_run), "--pareto", "--output", str(tmp_path / "p.svg")]) == 0
    assert (tmp_path / "p.svg").read_bytes() == before


def test_refusals(priced_run, toy_run, tmp_path, capsys):
    for words, code, message in (
        (["plot", str(toy_run), "--pareto"], 2, "must go with a run that ended in a Pareto front"),
        (["plot", str(priced_run), "--pareto", "--cell", "cell"], 2, "must go without --cell"),
        (
            ["plot", str(priced_run), "--pareto", "--format", "dot"],
            2,
            "--format dot or mermaid",
        ),
        (["plot", str(tmp_path), "--pareto"], 3, "not a run folder"),
        (
            [*SEARCH[:-5], "flops", "--output", str(tmp_path / "a")],
            2,
            "--pareto-cost must be one of .* no such file",
        ),
    ):
        assert main(words) == code
        error = capsys.readouterr().err.splitlines()
        assert error[0].startswith("error: ") and re.search(message, error[0]), error
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "space",
    [
        ["darts", "--nodes", "2", "--edges", "all", "--cells", "2"],
        ["nas-bench-201", "--cells", "1"],
        ["proxylessnas", "--widths", "16", "24", "--blocks", "1", "1", "--strides", "2", "1"],
    ],
    ids=lambda words: words[0],
)
def test_an_architecture_of_the_front_is_trained_from_the_folder(space, tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["search", "--space", *space, "--epochs", "0", "--compare", "0", "--batch-size", "64"]
    words += ["--pareto-cost", "parameters", "--pareto-samples", "1", "--pareto-images", "64"]
    assert main([*words, "--output", str(folder)]) == 0
    record = json.loads((folder / "pareto.json").read_text())
    genotype = Genotype.from_dict(record["architectures"][0]["genotype"])
    genotype.save(folder / "cell.json")
    words = ["train", str(folder / "cell.json"), "--epochs", "0", "--output"]
    assert main([*words, str(tmp_path / "final")]) == 0
    trained, searched = (
        json.loads((path / "config.json").read_text())["space"]
        for path in (tmp_path / "final", folder)
    )
    assert trained == searched
    capsys.readouterr()
    genotype.save(tmp_path / "alone.json")
    code = main(
        ["train", str(tmp_path / "alone.json"), "--epochs", "0", "--output", str(tmp_path / "b")]
    )
    assert code == (0 if space[0] == "nas-bench-201" else 3)
    error = capsys.readouterr().err
    assert code == 0 or "keep the file in the run's folder" in error
    assert ("so the chain has the default widths" in error) == (space[0] == "proxylessnas")
