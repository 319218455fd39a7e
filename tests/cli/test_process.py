"""The program as a process: start-up, pipes, character sets, signals."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

# A process takes two seconds to load torch, ten on a machine that is busy.
pytestmark = pytest.mark.timeout(180)


def finish(process, timeout=150):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def test_version_without_a_terminal(program):
    started = [
        program("--version"),
        program("--help"),
        program("search", "--help", env={"COLUMNS": "20"}),
    ]
    for process, words in zip(started, ("pyfast-nas 0", "inspect", "--epochs"), strict=True):
        code, out, err = finish(process)
        assert code == 0 and words in out and not err


def test_poor_terminals(program, toy_run):
    poor = {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "HOME": ""}
    for words in (
        ("inspect", toy_run),
        ("plot", toy_run),
        ("train", "--help"),
        ("report", toy_run),
    ):
        code, out, err = finish(program(*words, env=poor))
        assert code == 0 and out.isascii() and not err


@pytest.mark.promise("R5")
def test_inspect_touches_no_gpu(toy_run, program):
    code = (
        "import sys, torch; from pyfast_nas.cli.main import main; "
        "torch.cuda.init = torch.cuda._lazy_init = lambda: sys.exit(9); "
        f"code = main(['inspect', {str(toy_run)!r}]); "
        "sys.exit(code or 10 * torch.cuda.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_ends_it_quietly(program, toy_run):
    process = program("inspect", toy_run)
    process.stdout.close()
    process.stdout = None
    _code, _out, err = finish(process)
    assert "Traceback" not in err and "BrokenPipe" not in err


@pytest.mark.promise("P8")
def test_a_search_survives_the_loss_of_its_output(program, tmp_path):
    words = ("search", "--space", "toy", "--data", "toy", "--epochs", "2", "--seed", "1")
    whole = program(*words, "--output", tmp_path / "whole")
    process = program(*words, "--output", tmp_path / "broken")
    process.stdout.close()
    process.stdout = None
    _code, _out, err = finish(process)
    assert finish(whole)[0] == 0 and "Traceback" not in err
    for file in ("genotype.json", "alphas.jsonl", "metrics.jsonl"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_an_interrupt_ends_a_search_with_130(program, tmp_path):
    words = ("search", "--space", "toy", "--data", "toy", "--epochs", "100000")
    process = program(*words, "--output", tmp_path / "run")
    deadline = time.monotonic() + 40
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _out, err = finish(process)
    assert code == 130 and "Traceback" not in err
    # What was searched until then can be read.
    code, out, _err = finish(program("inspect", tmp_path / "run", "--json"))
    assert code == 0 and json.loads(out)["config"]["search"]["epochs"] == 100000
