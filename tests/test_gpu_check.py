"""The runner of ``make gpu-check``: a step that fails, one that hangs, a machine without a GPU."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csrc import build
from tests.gpu import check
from tests.gpu.check import LEFT, Step, plan, run

HIDDEN = ("tyro", "rich", "hypothesis", "pytest_timeout", "xdist", "pytest_benchmark")
TOOLS = build.find_toolchain()


def python(code: str, **more) -> Step:
    return Step(name="step", command=[sys.executable, "-c", code], **more)


def lines_of(steps, limit=float("inf")) -> tuple[int, list[str]]:
    lines = []
    return run(steps, limit, lines.append), lines


def test_a_failing_step_does_not_stop_the_others(capfd):
    first = dataclasses.replace(python("raise SystemExit(3)"), name="first")
    status, lines = lines_of([first, python("print('second ran')")])
    assert status == 1 and "second ran" in capfd.readouterr().out
    assert "1 passed, 1 failed, 0 skipped" in lines[-3]
    assert "failed   first" in lines[-2] and "exit status 3" in lines[-2]
    assert "passed   step" in lines[-1]


def test_what_cannot_run_is_skipped_with_its_reason():
    status, lines = lines_of([Step(name="step", cannot="there is no GPU")])
    assert status == 0
    assert "0 passed, 0 failed, 1 skipped" in lines[-2] and "there is no GPU" in lines[-1]
    assert lines_of([Step(name="step", command=["/no/such/program"])])[0] == 1


def test_a_step_that_hangs_is_stopped_with_its_children(tmp_path):
    mark = tmp_path / "pid"
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(mark)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    start = time.monotonic()
    status, lines = lines_of([python(code, seconds=2)])
    assert status == 1 and "stopped after 2 s" in lines[-1]
    assert time.monotonic() - start < 20
    child = Path(f"/proc/{mark.read_text()}/stat")
    # Killed is neither gone nor reaped at once.
    while child.exists() and not re.search(r"\) [ZX] ", child.read_text()):
        assert time.monotonic() - start < 20
        time.sleep(0.05)


def test_all_steps_share_a_limit():
    slow, late = python("import time; time.sleep(600)"), python("pass")
    status, lines = lines_of([slow, dataclasses.replace(late, name="late")], limit=1.5)
    assert status == 1 and "no time was left" in lines[-1]


def test_a_step_is_told_how_long_it_has(capfd):
    step = Step(name="step", command=[sys.executable, "-c", "import sys; print(sys.argv[1])", LEFT])
    assert lines_of([step], limit=77.5)[0] == 0
    assert capfd.readouterr().out.strip() in ("76", "77")


@pytest.mark.parametrize("has_gpu", [False, True])
def test_no_step_is_missing_from_the_plan(has_gpu):
    steps = {step.name: step for step in plan(TOOLS, has_gpu)}
    needed = ["machine", "build", "tests", "planted-mistakes", "memcheck", "racecheck"]
    needed += ["benchmarks"]
    assert list(steps)[: len(needed)] == needed
    for name in needed[1:]:
        assert has_gpu or "no GPU" in steps[name].cannot
    if has_gpu:
        assert all(steps[n].command and not steps[n].cannot for n in ("build", "tests"))
    else:
        assert {"compile", "registration", "twin-tests", "rehearsal"} <= steps.keys()


def test_without_tools_the_reason_is_named():
    bare = dataclasses.replace(TOOLS, nvcc="", nvcc_version="")
    steps = {step.name: step for step in plan(bare, False)}
    assert steps["compile"].cannot == "nvcc was not found"
    bare = dataclasses.replace(bare, cxx="")
    assert all(step.cannot for step in plan(bare, False)[1:])


@pytest.fixture
def bare_environment(tmp_path) -> dict[str, str]:
    """Environment of a Python that has none of the packages that a GPU machine may lack."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_spec(cls, name, path=None, target=None):\n"
        f"    hidden = name.partition('.')[0] in {HIDDEN!r}\n"
        "    return None if hidden else find(name, path, target)\n"
        "PathFinder.find_spec = classmethod(find_spec)\n"
        "# Nor is this package installed there.\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def test_nothing_but_torch_and_pytest_is_needed(bare_environment):
    """Collecting imports every module of the tests; opcheck asks torch for more than it needs."""
    named = ["tests/gpu/test_calculus.py", "-k", "cpu and registration_of_mixed_sum"]
    imports = "import pyfast_nas.bench, benchmarks.tables, tests.gpu.check, tests.gpu.steps"
    absent = f"import importlib.util as u; assert not any(map(u.find_spec, {HIDDEN!r}))"
    for command in (
        [sys.executable, "-c", f"{absent}; {imports}"],
        [*check.PYTEST, "tests/gpu", "--collect-only"],
        [*check.PYTEST, *named],
    ):
        done = subprocess.run(
            command,
            cwd=check.steps.REPOSITORY,
            env=bare_environment,
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.skipif(not TOOLS.nvcc, reason="nvcc is not here")
def test_planted_mistakes_compile(tmp_path):
    assert check.steps.compile_planted(tmp_path / "planted").is_file()


def test_benchmarks_stop_in_time_and_say_what_is_left_out(tmp_path, monkeypatch, capsys):
    from pyfast_nas import bench
    from pyfast_nas.bench import Row, record
    from pyfast_nas.bench.timing import Timing

    def slow(what, settings, say):
        assert settings.device == "cuda" and settings.batch_size == 64
        for case in ("one", "two"):
            time.sleep(0.3)
            common = {"shape": [1], "dtype": "float32", "threads": 1, "launches": 7}
            timing = Timing(1.0, 2.0, 3.0)
            modes = {"operator": what, "case": case, "mode": "both", "provider": "fused"}
            yield [Row(**modes, **common, timing=timing)]

    monkeypatch.setattr(bench, "bench", slow)
    monkeypatch.setattr(record, "device_name", lambda device="cpu": "A GPU")
    monkeypatch.setattr(record, "driver", lambda: "580.1")
    monkeypatch.setattr(check.steps, "RESULTS", tmp_path)
    monkeypatch.setattr(check.steps, "REPOSITORY", tmp_path)
    check.steps.main("benchmarks", "1")
    rows = bench.read(tmp_path / "a-gpu.json")
    assert {(row["operator"], row["case"]) for row in rows} >= {("supernet", "two")}
    assert all(row["driver"] == "580.1" and row["launches"] == 7 for row in rows)
    assert "no time was left for" in capsys.readouterr().out


def test_benchmarks_end_with_edges_beside_torch_compile(tmp_path, monkeypatch):
    from pyfast_nas import bench
    from pyfast_nas.bench import record

    asked = {}
    monkeypatch.setattr(
        bench, "bench", lambda what, settings, say: asked.update({what: settings}) or ()
    )
    monkeypatch.setattr(record, "device_name", lambda device="cpu": "A GPU")
    monkeypatch.setattr(check.steps, "RESULTS", tmp_path)
    monkeypatch.setattr(check.steps, "REPOSITORY", tmp_path)
    check.steps.main("benchmarks", "80")
    *others, last = asked
    assert last == "edge" and {"compile", "compile-channels-last"} <= set(asked[last].rivals)
    assert asked[last].compile_seconds == 10
    assert not any("compile" in asked[what].rivals for what in others)
