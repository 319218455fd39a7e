"""The operators' tests on their CUDA kernels, which the CPU runs thread by thread (csrc/twin/).

    python -m tests.twin [options of pytest]

builds that library and runs the tests once in each order of threads, or in the one that
``PFN_TWIN_ORDER`` names; as a plugin of those runs this file chooses the tests. A test that means
nothing there carries ``@pytest.mark.untwinned`` with the reason.
"""

import os
import sys
from pathlib import Path

import pytest

from csrc import build
from pyfast_nas import _ext
from pyfast_nas._version import __version__
from tests import other_library

FOLDER = other_library.REPOSITORY / "build" / "twin"
ORDERS = ("forward", "backward", "random")


def build_into(cache: Path) -> None:
    """Build the library where ``PYFAST_NAS_CACHE=cache`` finds it."""
    build.build_twin(cache / __version__, work=cache / "objects")


def environment(order: str) -> dict[str, str]:
    """Environment of a Python whose threads and blocks come in that order."""
    return other_library.environment(FOLDER, PFN_TWIN_ORDER=order)


def main(arguments: list[str]) -> int:
    """Build, run in each order, and return the exit status."""
    try:
        build_into(FOLDER)
    except build.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    named = os.environ.get("PFN_TWIN_ORDER")
    status = 0
    for order in [named] if named else ORDERS:
        print(f"threads and blocks in the order: {order}", flush=True)
        done = other_library.run_tests("tests.twin", environment(order), arguments)
        status = status or done.returncode
    return status


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to pass for a run on the twin what is none."""
    loaded = _ext.library()
    if loaded.record.get("kind") != "twin":
        raise pytest.UsageError(f"not the CPU's twin of CUDA: {loaded.path or loaded.problem}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what no CUDA kernel serves."""
    other_library.leave_out(config, items, _is_left_out)


def _is_left_out(item: pytest.Item) -> bool:
    return (
        other_library.shows_nothing(item, "untwinned")
        # There is one instruction set, that of the plain loops.
        or other_library.parameters(item).get("instruction_set", "plain") != "plain"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
