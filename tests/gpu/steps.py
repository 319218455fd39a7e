"""What the steps of ``make gpu-check`` do that are not a run of pytest.

python -m tests.gpu.steps machine | build KIND | compile | registration | planted |
        benchmarks SECONDS
"""

import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from csrc import build

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "build" / "gpu-check"
RESULTS = REPOSITORY / "benchmarks" / "results"


def folder(kind: str) -> Path:
    """Return the ``PYFAST_NAS_CACHE`` that holds the library of a kind."""
    return FOLDER / kind


def machine() -> None:
    """Say what is here."""
    from pyfast_nas.bench.record import commit, device_name, driver

    tools = build.find_toolchain()
    lines = {
        "commit": commit() or "none known",
        "sources": build.source_digest(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "CUDA of torch": tools.torch_cuda or "none",
        "nvcc": tools.nvcc_version or "not found",
        "C++": tools.cxx_version or "not found",
        "processor": device_name(),
        "GPU": "none",
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        lines["GPU"] = (
            f"{properties.name}, compute {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 2**30:.1f} GiB, driver {driver() or 'unknown'}"
        )
    for name, value in lines.items():
        print(f"{name:<14} {value}")


def make(kind: str) -> None:
    """Build the library of a kind: cuda, cpu or twin."""
    from pyfast_nas._version import __version__

    out, work = folder(kind) / __version__, folder(kind) / "objects"
    if kind == "twin":
        record = build.build_twin(out, work=work)
    else:
        record = build.build_library(out, kind=kind, work=work)
    print(f"built {record['kind']} with {record['cxx']} {record['nvcc']}".rstrip())


def compile_kernels() -> None:
    """Compile every CUDA source, warnings as errors."""
    from tests.cuda_resources import ARCHITECTURES, parse

    architecture = ARCHITECTURES[-1]
    report = build.compile_cuda(FOLDER / "kernels", architectures=architecture)
    kernels = parse(report)
    spills = sum(numbers["spills"] for numbers in kernels.values())
    print(f"{len(kernels)} kernels for compute {architecture}, {spills} bytes of spills")


def check_registration() -> None:
    """Compile the registrations against CUDA's headers."""
    build.check_cuda_registration(FOLDER / "registration")
    print("the registrations fit the headers of CUDA")


def sanitizer(tool: str) -> list[str]:
    """Return the words that put a program under a tool of compute-sanitizer; none without it."""
    beside = shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    program = shutil.which("compute-sanitizer") or beside
    if program is None:
        return []
    # Only our kernels: torch's own are neither the question nor worth the wait.
    words = [program, "--tool", tool, "--kernel-name", "kernel_substring=run_kernel"]
    # What torch asks the driver in vain is no mistake; our own launches are checked where they are.
    words += ["--report-api-errors", "no"] if tool == "memcheck" else []
    return [*words, "--error-exitcode", "1", "--print-limit", "20"]


def planted() -> None:
    """See that compute-sanitizer reports mistakes that are there."""
    program = compile_planted(FOLDER / "planted")
    for tool in ("memcheck", "racecheck"):
        command = [*sanitizer(tool), str(program), tool]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        if done.returncode != 1 or f"run_kernel_{MISTAKES[tool]}" not in done.stdout:
            print(done.stdout, done.stderr, sep="\n")
            raise SystemExit(f"{tool} did not report the planted {MISTAKES[tool]}")
        print(f"{tool} reports the planted {MISTAKES[tool]}")


MISTAKES = {"memcheck": "overrun", "racecheck": "race"}


def compile_planted(program: Path) -> Path:
    """Compile the planted mistakes for the GPU that is here, or the default."""
    tools = build.find_toolchain()
    program.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("planted.cu")
    subprocess.run([tools.nvcc, "-Wno-deprecated-gpu-targets", str(source), "-o", str(program)],
                   check=True)  # fmt: skip
    return program


def benchmarks(seconds: float) -> None:
    """Time operators, supernets and search steps on the GPU; write what is done at once."""
    from pyfast_nas.bench import Settings, bench, stamp, write
    from pyfast_nas.bench.record import file_name
    from pyfast_nas.bench.summary import table

    end = time.monotonic() + 0.8 * seconds
    path = RESULTS / file_name("cuda")
    settings = Settings(device="cuda", batch_size=64, seconds=0.5, rounds=5, resident=False)
    # Last, since torch.compile takes its time; `pyfast-nas bench --compile` gives it to supernets.
    compiled = ("compile", "compile-channels-last")
    with_compiled = dataclasses.replace(
        settings, rivals=(*settings.rivals, *compiled), compile_seconds=seconds / 8
    )
    plan = dict.fromkeys(("supernet", "step", "operators", "tensor-list", "profile"), settings)

    def say(line: str) -> None:
        print(line, flush=True)

    left_out = []
    for what, sizes in (plan | {"edge": with_compiled}).items():
        if time.monotonic() > end:
            left_out.append(what)
            continue
        for rows in bench(what, sizes, say):
            records = stamp(rows, "cuda")
            write(records, path)
            for line in table(records)[1]:
                say("   " + "  ".join(f"{cell:>12}" for cell in line))
            if time.monotonic() > end:
                left_out.append(f"the rest of {what}")
                break
    say(f"rows in {path.relative_to(REPOSITORY)}")
    if left_out:
        say(f"no time was left for {', '.join(left_out)}: pyfast-nas bench --device cuda")


STEPS: dict[str, Callable] = {
    "machine": machine,
    "build": make,
    "compile": compile_kernels,
    "registration": check_registration,
    "planted": planted,
    "benchmarks": lambda seconds: benchmarks(float(seconds)),
}


def main(name: str, *arguments: str) -> int:
    """Run one of them; a failed build is a line, not a traceback."""
    try:
        STEPS[name](*arguments)
    except build.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
