"""``make gpu-check``: what a GPU has to show, in one command; without a GPU what needs none.

    python -m tests.gpu.check [STEP ...]

Every step is a process of its own with a limit of time, and none stops those after it. Nothing is
installed or fetched: besides torch, numpy, pytest, ninja and the compilers it needs this checkout.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from csrc import build
from tests.gpu import steps

LIMIT = 530.0  # seconds for all steps where there is a GPU: nine minutes, less the start
LEFT = "{left}"  # in a command: the seconds that the step has

PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"),
    # pyproject.toml has options of plugins that need not be there.
    *("-W", "ignore::pytest.PytestConfigWarning"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One process.

    Attributes:
        name: What it is called, on the command line too.
        command: Its words; empty where the step cannot run.
        seconds: After how long it is stopped.
        cannot: Why it cannot run.
        variables: Of its environment, beside those that are there.
    """

    name: str
    command: Sequence[str] = ()
    seconds: float = 600.0
    cannot: str = ""
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """``word`` is passed, failed or skipped; ``note`` says why."""

    step: str
    word: str
    seconds: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        took = f"{self.seconds:7.1f} s" if self.word != "skipped" else " " * 9
        return f"{self.word:<8} {self.step:<22} {took}  {self.note}".rstrip()


def run(planned: Sequence[Step], limit: float = float("inf"), say: Callable = print) -> int:
    """Run the steps one after the other; return an exit status that is zero if none failed.

    Args:
        planned: What is run.
        limit: Seconds for all of them; what does not come to its turn has failed.
        say: Takes a line about what is going on.
    """
    start = time.monotonic()
    outcomes = []
    for step in planned:
        say(f"\n=== {step.name}")
        outcomes.append(_run_step(step, start + limit - time.monotonic()))
        say(f"--- {outcomes[-1]}")
    words = [outcome.word for outcome in outcomes]
    counts = (f"{words.count(word)} {word}" for word in ("passed", "failed", "skipped"))
    say("\n=== gpu-check: " + ", ".join(counts))
    for outcome in outcomes:
        say(f"  {outcome}")
    return int("failed" in words)


def _run_step(step: Step, left: float) -> Outcome:
    if step.cannot:
        return Outcome(step.name, "skipped", note=step.cannot)
    if left <= 0:
        return Outcome(step.name, "failed", note="no time was left")
    seconds = min(step.seconds, left)
    start = time.monotonic()
    try:
        child = subprocess.Popen(
            [word.replace(LEFT, str(int(seconds))) for word in step.command],
            cwd=steps.REPOSITORY,
            env={**os.environ, **step.variables},
            start_new_session=True,  # its children end with it
        )
    except OSError as error:
        return Outcome(step.name, "failed", note=str(error))
    note = ""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        note = f"stopped after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    took = time.monotonic() - start
    if child.returncode and not note:
        note = f"exit status {child.returncode}"
    return Outcome(step.name, "failed" if note else "passed", took, note)


def plan(tools: build.Toolchain, has_gpu: bool) -> list[Step]:
    """Return the steps of a machine."""
    machine = Step(name="machine", command=_own("machine"), seconds=60)
    return [machine, *(_with_gpu(tools) if has_gpu else _without_gpu(tools))]


def _with_gpu(tools: build.Toolchain) -> list[Step]:
    here = _library("cuda")
    values = [*PYTEST, "-W", "default", "tests/gpu/test_values.py", "-m", "cuda and reduced"]
    return [
        Step(name="build", command=_own("build", "cuda"), seconds=240),
        Step(
            name="tests",
            # Warnings of a torch and a driver that nobody has seen yet are no failure.
            command=[*PYTEST, "-W", "default", "tests/gpu", "-m", "cuda"],
            seconds=180,
            variables=here,
        ),
        *_sanitizers(values, here),
        Step(name="benchmarks", command=_own("benchmarks", LEFT), variables=here),
    ]


def _without_gpu(tools: build.Toolchain) -> list[Step]:
    no_gpu = "torch sees no GPU here"
    no_cxx = "" if tools.cxx and tools.ninja else "no C++ compiler or no ninja was found"
    no_nvcc = no_cxx or ("" if tools.nvcc else "nvcc was not found")
    waiting = ("build", "tests", "planted-mistakes", "memcheck", "racecheck", "benchmarks")
    rehearsal = [*PYTEST, "tests/gpu", "-m", "not cuda"]
    reduced = [*PYTEST, "tests/gpu", "-m", "not cuda and reduced"]
    return [
        *(Step(name=name, cannot=no_gpu) for name in waiting),
        Step(name="compile", command=_own("compile"), seconds=1200, cannot=no_nvcc),
        Step(name="registration", command=_own("registration"), cannot=no_nvcc),
        Step(name="twin-build", command=_own("build", "twin"), cannot=no_cxx),
        Step(name="twin-tests", command=reduced, variables=_library("twin"), cannot=no_cxx),
        Step(name="cpu-build", command=_own("build", "cpu"), cannot=no_cxx),
        Step(name="rehearsal", command=rehearsal, variables=_library("cpu"), cannot=no_cxx),
    ]


def _own(*words: str) -> list[str]:
    return [sys.executable, "-m", "tests.gpu.steps", *words]


def _library(kind: str) -> dict[str, str]:
    """Environment of a process whose kernels are those of a build of this kind, or none."""
    return {
        "PYFAST_NAS_CACHE": str(steps.folder(kind)),
        "PYFAST_NAS_KERNELS": "require",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # products give the same bits each time
    }


def _sanitizers(command: Sequence[str], here: Mapping[str, str]) -> Iterator[Step]:
    words = steps.sanitizer("memcheck")
    cannot = "" if words else "compute-sanitizer was not found"
    # A tool that finds nothing at all would find nothing in the kernels either.
    yield Step(name="planted-mistakes", command=_own("planted"), seconds=60, cannot=cannot)
    for tool in ("memcheck", "racecheck"):
        yield Step(
            name=tool,
            command=[*steps.sanitizer(tool), *command],
            seconds=75,
            cannot=cannot,
            # Inside torch's pool an overrun would hit memory that is there, and show nowhere.
            variables={**here, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )


def main(arguments: Sequence[str]) -> int:
    """Run the steps that are named, or all; return the exit status."""
    has_gpu = torch.cuda.is_available()
    planned = plan(build.find_toolchain(), has_gpu)
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.splitlines()[0])
    names = [step.name for step in planned]
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(names))
    asked = parser.parse_args(arguments).steps
    if unknown := [name for name in asked if name not in names]:
        parser.error(f"STEP must be one of {', '.join(names)}, got {unknown[0]}")
    chosen = [step for step in planned if not asked or step.name in asked]
    return run(chosen, LIMIT if has_gpu else float("inf"), lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
