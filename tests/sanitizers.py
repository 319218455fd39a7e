"""The operators' tests on a library built with the address and undefined-behaviour sanitizers.

    python -m tests.sanitizers [options of pytest]

builds it and starts the run; as a plugin of that run this file chooses the tests. A test that shows
nothing there carries ``@pytest.mark.unsanitized`` with the reason, or a promise of ``LEFT_OUT``.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pyfast_nas import _ext
from pyfast_nas._csrc import build
from pyfast_nas._version import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "build" / "sanitized"
TESTS = ("tests/ops",)

# Promises whose tests are left out: their time goes into Python, and the kernels that they reach
# are reached by others.
LEFT_OUT = {
    "K5": "torch.library.opcheck",
    "K17": "torch.compile",
    "K18": "torch.func transforms",
}


def environment(cache: Path, reports: Path, cxx: str) -> dict[str, str]:
    """Environment of a Python that loads the library in ``cache`` and writes what it finds.

    Raises:
        build.BuildError: If the compiler has no sanitizer libraries.
    """
    runtimes = []
    for name in ("libasan.so", "libstdc++.so"):
        ask = [cxx, f"-print-file-name={name}"]
        path = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(path).is_absolute():  # the name itself comes back where there is no such file
            raise build.BuildError(f"{cxx} has no {name} (use g++ with its sanitizer libraries)")
        runtimes.append(path)
    reports.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        # Undefined behaviour is reported on stderr whatever log_path says: both runtimes have a
        # function that sets it, and the preloaded one is found first.
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=1:log_path={reports / 'report'}",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        # Python's own arenas would hide overruns of what it allocates.
        "PYTHONMALLOC": "malloc",
        "PYFAST_NAS_CACHE": str(cache),
        "PYFAST_NAS_KERNELS": "require",
    }


def build_into(cache: Path, tools: build.Toolchain) -> None:
    """Build the sanitized library where ``PYFAST_NAS_CACHE=cache`` finds it."""
    build.build_library(
        cache / __version__, kind="cpu", work=cache / "objects", sanitize=True, tools=tools
    )


def outcome(code: int, errors: str, reports: Path) -> int:
    """Return an exit status that is zero only where nothing was reported; print what was."""
    texts = [path.read_text(errors="replace") for path in sorted(reports.glob("report.*"))]
    code = code or int("runtime error:" in errors or bool(texts))
    if code:
        print(errors, *texts, sep="\n", file=sys.stderr)
    return code


def main(arguments: list[str]) -> int:
    """Build, run, and return the exit status."""
    reports = FOLDER / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    try:
        tools = build.find_toolchain()
        build_into(FOLDER, tools)
        variables = environment(FOLDER, reports, tools.cxx)
    except build.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # -s, or a worker that is stopped takes its report with it.
    options = ["-s", "-p", "tests.sanitizers", "-p", "no:benchmark", "--timeout", "300"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *options, *TESTS, *arguments]
    done = subprocess.run(
        command, env=variables, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    return outcome(done.returncode, done.stderr, reports)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to pass for a sanitizer run what is none."""
    loaded = _ext.library()
    if "-fsanitize=address,undefined" not in str(loaded.record.get("flags")):
        raise pytest.UsageError(f"not a sanitized library: {loaded.path or loaded.problem}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on every instruction set what does not choose one itself."""
    if "instruction_set" not in metafunc.fixturenames:
        capability = torch.ops.pyfast_nas.cpu_capability
        levels = [level for level in range(3) if capability(level) == level]
        metafunc.parametrize("instruction_level", levels, indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def instruction_level(request) -> Iterator[None]:
    """Lower the instruction set for as long as tests ask for the same."""
    capability = torch.ops.pyfast_nas.cpu_capability
    capability(getattr(request, "param", 2))
    yield
    capability(2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the reference, which is plain PyTorch, and tests that show little here."""
    left_out = [item for item in items if _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _is_left_out(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    promises = {name for mark in item.iter_markers("promise") for name in mark.args}
    return (
        parameters.get("backend") == "reference"
        or any(item.get_closest_marker(mark) for mark in ("unsanitized", "long", "cuda"))
        or bool(promises and promises <= LEFT_OUT.keys())
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
