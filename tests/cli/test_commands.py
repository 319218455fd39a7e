"""Each command from end to end on tiny settings, its output read back."""

import json
import re
import shlex
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from pyfast_nas.cli.main import COMMANDS, main
from pyfast_nas.spaces import Genotype


def test_search_leaves_a_whole_run_folder(toy_run):
    names = {path.name for path in toy_run.iterdir()}
    assert names == {
        *("alphas.jsonl", "cell.svg", "config.json", "evaluation.json", "genotype.json"),
        *("metrics.jsonl", "report.html", "result.json", "timing.jsonl"),
    }
    ElementTree.parse(toy_run / "cell.svg")
    assert "Architecture search on toy" in (toy_run / "report.html").read_text()


@pytest.mark.promise("B5")
def test_search_says_what_it_does_and_what_to_do_next(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["search", "--space", "toy", "--data", "toy", "--epochs", "1", "--compare", "2"]
    assert main([*words, "--train-epochs", "1", "--compare-seeds", "2"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "runs" / "toy-darts-1"
    sentence = json.loads((folder / "evaluation.json").read_text())["sentence"]
    for line in (
        "searching: darts in the toy space on toy",
        r"kernels: .*mixed_sum (compiled|reference)",
        r"epoch 1/1  loss \d\.\d{3} valid",
        r"network 4/4  random, seed 1: test accuracy",
        r"architecture  [0-9a-f]{16}",
        r"0 = \w+\(input\)",
        r"found         \d+\.\d\d % \d",
        re.escape(sentence),
        r"peak memory   [\d.]+ [MG]iB",
        "report        runs/toy-darts-1/report.html",
    ):
        assert re.search(line, out), line
    following = shlex.split(re.search(r"^next +pyfast-nas (.*)$", out, re.MULTILINE)[1])
    assert main([*following, "--epochs", "1"]) == 0
    assert (folder / "final" / "network.pt2").is_file()
    # A second search takes the next free folder.
    assert main([*words[:-2], "--compare", "0"]) == 0
    assert (tmp_path / "runs" / "toy-darts-2" / "genotype.json").is_file()


def test_search_json_is_all_that_stands_on_stdout(tmp_path, capsys):
    words = ["search", "--space", "toy", "--data", "toy", "--epochs", "1", "--json"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert Genotype.from_dict(record["genotype"]).space == "toy"
    assert record["evaluation"] is None and record["trained"] is True
    assert record["report"].endswith("report.html") and record["peak_memory_bytes"] > 0
    assert "epoch 1/1" in captured.err


def test_options_reach_the_search(digits_run):
    config = json.loads((digits_run / "config.json").read_text())
    assert config["algorithm"]["name"] == "msg-das" and config["algorithm"]["paths"] == 2
    space = config["space"]
    assert (space["channels"], space["cells"], space["nodes"]) == (2, 2, 2)
    assert (space["in_channels"], space["image_size"]) == (1, [8, 8])
    assert config["search"]["batch_size"] == 128 and config["data"]["name"] == "digits"
    lines = [json.loads(line) for line in (digits_run / "alphas.jsonl").read_text().splitlines()]
    assert lines[0]["alphas"] != lines[-1]["alphas"]


def test_train_takes_a_genotype_and_the_network_loads(digits_run, tmp_path, capsys):
    # The space of the run, which is no default one, is found beside the genotype.
    words = ["train", digits_run / "genotype.json", "--channels", "2", "--cells", "2"]
    words += ["--epochs", "1", "--output", tmp_path / "final", "--json"]
    assert main(list(map(str, words))) == 0
    record = json.loads(capsys.readouterr().out)
    assert 0 <= record["accuracy"] <= 1 and record["parameters"] > 0
    network = torch.export.load(record["paths"]["network.pt2"]).module()
    assert network(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_train_in_words(toy_run, tmp_path, capsys):
    words = ["train", toy_run, "--data", "toy", "--epochs", "1", "--output", tmp_path / "a b"]
    assert main(list(map(str, words))) == 0
    out = capsys.readouterr().out
    assert re.search(r"test accuracy +\d+\.\d\d %", out) and "a b'" in out


def test_derive_repeats_the_search_and_knows_other_epochs(toy_run, tmp_path, capsys):
    assert main(["derive", str(toy_run), "--json"]) == 0
    assert Genotype.from_json(capsys.readouterr().out) == Genotype.load(toy_run / "genotype.json")
    target = tmp_path / "start.json"
    assert main(["derive", str(toy_run), "--epoch", "0", "--output", str(target)]) == 0
    assert Genotype.load(target).space == "toy"
    assert main(["derive", str(toy_run)]) == 0
    assert "0 = " in capsys.readouterr().out


def test_derive_with_another_operation_list_and_fewer_nodes(digits_run, capsys):
    assert main(["derive", str(digits_run), "--json"]) == 0
    assert Genotype.from_json(capsys.readouterr().out) == Genotype.load(
        digits_run / "genotype.json"
    )


def test_derive_refuses_a_random_search(tmp_path, capsys):
    words = ["search", "--space", "toy", "--data", "toy", "--algorithm", "random", "--samples", "2"]
    assert main([*words, "--epochs", "1", "--output", str(tmp_path / "run")]) == 0
    assert main(["derive", str(tmp_path / "run")]) == 2
    assert "never move" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "start"), [("svg", "<svg"), ("dot", "digraph"), ("mmd", "flowchart")]
)
def test_plot_writes_one_file_a_cell(digits_run, tmp_path, capsys, suffix, start):
    assert main(["plot", str(digits_run), "--output", str(tmp_path / f"cells.{suffix}")]) == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"cells-normal.{suffix}", f"cells-reduce.{suffix}"]
    assert (tmp_path / files[0]).read_text().startswith(start)
    assert capsys.readouterr().out.count("wrote ") == 2


def test_what_cannot_be_written_is_named_with_a_way_out(toy_run, tmp_path, capsys):
    for command, name, code, message in (
        ("plot", "cell.png", 2, "--output must end in .svg, .dot, .* got .*cell.png"),
        ("plot", "no/a.svg", 4, "--output .*no/a.svg cannot be written: No such .*; name another"),
        ("derive", "no/a.json", 4, "--output .*no/a.json cannot be written: No such .*; name an"),
    ):
        assert main([command, str(toy_run), "--output", str(tmp_path / name)]) == code
        assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_plot_to_stdout(digits_run, toy_run, capsys):
    assert main(["plot", str(toy_run), "--format", "mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart LR\n")
    genotype = digits_run / "genotype.json"
    assert main(["plot", str(genotype), "--cell", "reduce"]) == 0
    ElementTree.fromstring(capsys.readouterr().out)
    assert main(["plot", str(genotype)]) == 2
    assert "normal, reduce" in capsys.readouterr().err


def test_report_is_written_again(toy_run, capsys):
    page = toy_run / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert main(["report", str(toy_run)]) == 0
    assert page.read_bytes() == before and "report.html" in capsys.readouterr().out


@pytest.mark.promise("R5")
def test_inspect_shows_runs_and_genotypes(toy_run, digits_run, capsys):
    assert main(["inspect", str(toy_run)]) == 0
    out = capsys.readouterr().out
    for words in ("algorithm  darts", "space      toy", "verdict", "peak memory", "0 = "):
        assert words in out
    assert main(["inspect", str(digits_run / "genotype.json")]) == 0
    assert "normal cell" in capsys.readouterr().out


@pytest.mark.promise("R5")
def test_inspect_as_json(toy_run, capsys):
    assert main(["inspect", str(toy_run), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["config"]["algorithm"]["name"] == "darts" and record["epochs"] == 2
    assert {finding["level"] for finding in record["findings"]} <= {"good", "note", "warn"}
    assert main(["inspect", str(toy_run / "genotype.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hash"] == record["hash"]


def test_same_seed_same_bytes_from_the_command_line(tmp_path):
    words = ["search", "--space", "toy", "--data", "toy", "--algorithm", "msg-das", "--epochs", "1"]
    for name in ("a", "b"):
        assert main([*words, "--seed", "3", "--output", str(tmp_path / name)]) == 0
    for file in ("genotype.json", "alphas.jsonl", "metrics.jsonl", "cell.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_real_images_by_path(real_data, tmp_path, capsys):
    data = f"cifar10:{real_data / 'cifar-10-batches-py'}"
    words = ["search", "--data", data, "--epochs", "0", "--compare", "0", "--channels", "2"]
    assert main([*words, "--cells", "2", "--output", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "on cifar10" in out and f"--data {data} " in out
    assert "no epoch was run" in out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No epoch was searched" in page


@pytest.mark.parametrize("width", ["20", "200"])
def test_help_shows_options_with_their_defaults(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    assert main(["search", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--epochs INT" in out and "(default: 10)" in out and "--alpha-lr FLOAT" in out
    assert "--paths" not in out and "--num-classes" not in out
    assert main(["search", "--help", "--algorithm", "msg-das", "--data", "cifar10:x"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--paths INT" in out and "(default: 600)" in out


def test_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: pyfast-nas {command}" in capsys.readouterr().out
