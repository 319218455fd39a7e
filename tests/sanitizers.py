"""The operators' tests on a library built with the address and undefined-behaviour sanitizers.

    python -m tests.sanitizers [options of pytest]

builds it and starts the run; as a plugin of that run this file chooses the tests. A test that shows
nothing there carries ``@pytest.mark.unsanitized`` with the reason.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from csrc import build
from pyfast_nas import _ext
from pyfast_nas._version import __version__
from tests import other_library

FOLDER = other_library.REPOSITORY / "build" / "sanitized"


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
    return other_library.environment(
        cache,
        LD_PRELOAD=" ".join(runtimes),
        # Undefined behaviour is reported on stderr whatever log_path says: both runtimes have a
        # function that sets it, and the preloaded one is found first.
        ASAN_OPTIONS=f"detect_leaks=0:halt_on_error=1:log_path={reports / 'report'}",
        UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1",
        # Python's own arenas would hide overruns of what it allocates.
        PYTHONMALLOC="malloc",
    )


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
    options = ["-s", *arguments]
    done = other_library.run_tests("tests.sanitizers", variables, options, stderr=subprocess.PIPE)
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
    other_library.leave_out(
        config, items, lambda item: other_library.shows_nothing(item, "unsanitized")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
