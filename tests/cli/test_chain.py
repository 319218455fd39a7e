"""Every command on a chain of bottlenecks, whose pictures and files are those of any space."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from pyfast_nas.cli.main import main
from pyfast_nas.spaces import PROXYLESS_GPU, Genotype

SIZES = ["--width-factor", "0.25", "--widths", "24", "40"]
SIZES += ["--blocks", "2", "1", "--strides", "2", "1"]


@pytest.fixture(scope="module")
def chain_run(tmp_path_factory):
    """Run folder of a tiny search with a comparison."""
    folder = tmp_path_factory.mktemp("chain") / "run"
    words = ["search", "--space", "proxylessnas", *SIZES, "--algorithm", "random", "--epochs", "1"]
    words += ["--samples", "2", "--batch-size", "256", "--compare", "1", "--compare-seeds", "1"]
    assert main([*words, "--train-epochs", "1", "--output", str(folder)]) == 0
    return folder


def test_search_leaves_a_whole_run_folder(chain_run):
    ElementTree.parse(chain_run / "blocks.svg")
    assert "mbconv" in (chain_run / "report.html").read_text()
    space = json.loads((chain_run / "config.json").read_text())["space"]
    assert (space["widths"], space["blocks"], space["image_size"]) == ([24, 40], [2, 1], [8, 8])
    rows = json.loads((chain_run / "alphas.jsonl").read_text().splitlines()[-1])["alphas"]["blocks"]
    assert [row.count(None) for row in rows] == [1, 0, 1]


def test_inspect_plot_and_train(chain_run, tmp_path, capsys):
    assert main(["inspect", str(chain_run)]) == 0
    assert re.search(r"2 = mbconv_\dx\d_e\d\(1\)", capsys.readouterr().out)
    for format, words in (("svg", "<svg"), ("dot", "digraph"), ("mermaid", "flowchart")):
        assert main(["plot", str(chain_run), "--format", format]) == 0
        out = capsys.readouterr().out
        assert words in out and "mbconv" in out
    final = tmp_path / "final"
    words = ["train", str(chain_run), "--epochs", "0", "--output", str(final)]
    assert main(words) == 0
    assert json.loads((final / "config.json").read_text())["space"]["blocks"] == [2, 1]


def test_a_published_chain_is_drawn(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    PROXYLESS_GPU.save(path)
    assert Genotype.load(path) == PROXYLESS_GPU
    assert main(["plot", str(path), "--output", str(tmp_path / "gpu.svg")]) == 0
    text = " ".join(ElementTree.parse(tmp_path / "gpu.svg").getroot().itertext())
    assert text.count("mbconv_7x7_e6") >= 6 and "zero" in text
    assert "inverted bottleneck" in text
    assert main(["inspect", str(path)]) == 0
    assert "20 = mbconv_7x7_e6(19)" in capsys.readouterr().out


def test_a_chain_of_other_sizes_is_refused(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    PROXYLESS_GPU.save(path)
    assert main(["train", str(path), "--epochs", "0"]) != 0
    assert "must be a chain of 11 edges" in capsys.readouterr().err
