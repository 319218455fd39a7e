"""Bad input on the command line: one line that names it, the right exit code, nothing changed."""

import json

import pytest

from pyfast_nas.cli.main import main

# What is typed, the exit code, words of the message.
USAGE = [
    ("", 2, "a command must be given: search, train"),
    ("serch", 2, "unknown command 'serch'; did you mean 'search'?"),
    ("--frobnicate", 2, "unknown option '--frobnicate'"),
    ("search --epoch 3", 2, "unknown option '--epoch'; did you mean '--epochs'?"),
    ("search --zzz", 2, "unknown option '--zzz'"),
    ("search --epochs", 2, "--epochs needs a value"),
    ("search --epochs --seed 1", 2, "--epochs needs a value"),
    ("search --epochs three", 2, "--epochs must be an integer, got 'three'"),
    ("search --epochs -1", 2, "--epochs must be an integer at least 0, got -1"),
    ("search --valid-fraction nan", 2, "--valid-fraction must be a finite number"),
    ("search --valid-fraction 1", 2, "--valid-fraction must be .* less than 1, got 1"),
    ("search --seed -1", 2, "--seed must be an integer at least 0"),
    ("search --seed 9223372036854775808", 2, "--seed must be an integer"),
    ("search --alpha-betas 0.5", 2, "alpha-betas"),
    (
        "search --algorithm unas --cost-target 10",
        2,
        "--cost-target must not be given with --cost none and no criterion, where",
    ),
    (
        "search --curvature-action stop",
        2,
        "--curvature-action must be 'watch' with --curvature-interval 0",
    ),
    ("search --channels 0", 2, "--channels must be an integer at least 1, got 0"),
    ("search --nodes 0", 2, "--nodes must be"),
    ("search --operations none frobnicate", 2, "frobnicate"),
    ("search --paths 2", 2, "--paths belongs to the algorithm 'msg-das', not to 'darts'"),
    ("search --algorithm random --alpha-lr 1", 2, "--alpha-lr belongs to the algorithm 'darts'"),
    ("search --space s2 --nodes 3", 2, "--nodes belongs to the space 'darts', not to 's2'"),
    ("search --space toy --cells 3", 2, "--cells belongs to the space 'darts', .*, not to 'toy'"),
    ("search --num-classes 3", 2, "unknown option '--num-classes'"),
    (
        "search --algorithm dart",
        2,
        "one of darts, .*, random, .*got 'dart'; did you mean",
    ),
    ("search --space galaxy", 2, "--space must be one of darts, nas-bench-201, .* got 'galaxy'"),
    ("search --algorithm msg-das --mode jiont", 2, "one of accumulate, joint, got 'jiont'"),
    ("search --data imagenet", 2, "'digits', 'toy', 'cifar10:FOLDER' or 'cifar100:FOLDER'"),
    ("search --device cuda:99", 2, "'cpu'.*got 'cuda:99'"),
    ("search --device tpu", 2, "must be 'auto' or one of 'cpu'"),
    ("search surplus", 2, "unexpected argument 'surplus'"),
    ("train", 2, "GENOTYPE is missing"),
    ("inspect", 2, "PATH is missing"),
    ("derive . --output no/such/a.json", 3, "not a run folder"),
    ("plot x --format png", 2, "--format must be one of .*svg.*, got 'png'"),
    ("search --data cifar10:no/such/folder", 3, "no/such/folder"),
    ("train no-such.json", 3, "no-such.json cannot be read: No such file"),
    ("inspect no-such-run", 3, "no-such-run cannot be read: No such file"),
    ("derive no-such-run", 3, "no-such-run.* must be the folder of a run|cannot be read"),
    ("report .", 3, "not a run folder"),
    ("plot .", 3, "genotype.json cannot be read"),
]


@pytest.mark.parametrize(("words", "code", "message"), USAGE, ids=[row[0] or "-" for row in USAGE])
def test_one_line_and_the_right_code(words, code, message, tmp_path, capsys, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0].startswith("error: ") and re.search(message, lines[0]), captured.err
    assert len(lines) == (2 if code == 2 else 1)
    assert code != 2 or lines[1].startswith("usage: pyfast-nas")
    assert "Traceback" not in captured.err and not captured.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[1, 2]",
        b'{"format": "pyfast_nas.genotype", "version": 99}',
        b"__import__('os').system('x')",
        b"\x80\x04K\x01.",
        b"[" * 100_000,
        b'{"a": NaN}',
    ],
)
@pytest.mark.parametrize("command", ["train", "inspect", "plot"])
def test_bad_genotype_files(command, content, tmp_path, capsys):
    path = tmp_path / "genotype.json"
    path.write_bytes(content)
    assert main([command, str(path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and len(line) < 600


def test_a_genotype_of_another_data_shape_is_refused(toy_run, tmp_path, capsys):
    words = ["train", str(toy_run / "genotype.json"), "--data", "digits"]
    assert main([*words, "--output", str(tmp_path / "x")]) == 2
    assert "Toy: num_classes must be 2" in capsys.readouterr().err


def test_an_output_folder_with_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    words = ["search", "--space", "toy", "--data", "toy", "--epochs", "0"]
    assert main([*words, "--output", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "--output" in err and "--overwrite" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_cannot_be_written_is_code_4(toy_run, tmp_path, capsys):
    words = ["plot", str(toy_run), "--output", str(tmp_path / "missing" / "cell.svg")]
    assert main(words) == 4
    assert "No such file or directory" in capsys.readouterr().err


def test_divergence_is_code_5(tmp_path, capsys):
    words = ["search", "--space", "toy", "--data", "toy", "--epochs", "1", "--weight-lr", "1e38"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 5
    (line,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning")]
    assert "step" in line


def test_control_characters_are_shown_not_obeyed(tmp_path, capsys):
    assert main(["search", "--data", "\x1b[31mred"]) == 2
    assert main(["plot", "\x1b[2J\n"]) == 3
    assert main(["\x1b[2J"]) == 2
    assert main(["search", "--\x1b[2J"]) == 2
    assert main(["inspect", "\udcff"]) == 3
    assert "\x1b" not in capsys.readouterr().err


def test_memory_is_code_6(monkeypatch, capsys):
    from pyfast_nas.cli import inspect

    def fail(_options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")

    monkeypatch.setattr(inspect, "run", fail)
    assert main(["inspect", "x"]) == 6
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_fault_of_ours_shows_where_and_is_code_1(monkeypatch, capsys):
    from pyfast_nas.cli import inspect

    monkeypatch.setattr(inspect, "run", lambda options: {}["x"])
    assert main(["inspect", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_code_130(monkeypatch, capsys):
    from pyfast_nas.cli import inspect

    def stop(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "run", stop)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_debug_shows_the_traceback(capsys):
    assert main(["inspect", "no-such-run", "--debug"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err and "error: no-such-run cannot be read" in err


def test_broken_run_folders_are_code_3(toy_run, tmp_path, capsys):
    for name, text in (("config.json", "{"), ("alphas.jsonl", "x\n"), ("genotype.json", "{}")):
        folder = tmp_path / name
        folder.mkdir()
        for path in toy_run.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / name).write_text(text)
        for command in ("inspect", "report", "derive"):
            assert main([command, str(folder)]) == 3
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 9 and all(line.startswith("error: ") for line in errors)


def test_derive_from_alphas_that_are_not_numbers(toy_run, tmp_path, capsys):
    for path in toy_run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    line = {"epoch": 0, "alphas": {"cell": [["a", 1, 2, 3], [0, 0, 0, 0]]}}
    (tmp_path / "alphas.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["derive", str(tmp_path)]) == 3
    assert "error: " in capsys.readouterr().err
