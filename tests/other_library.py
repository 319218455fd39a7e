"""What the runners share that put the operators' tests on a library built for that alone."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = ("tests/ops",)

# Promises whose tests are left out: their time goes into Python, and the kernels that they reach
# are reached by others.
LEFT_OUT = {
    "K5": "torch.library.opcheck",
    "K17": "torch.compile",
    "K18": "torch.func transforms",
}


def environment(cache: Path, **more: str) -> dict[str, str]:
    """Environment of a Python that loads the library in ``cache`` and no other."""
    return {
        **os.environ,
        "PYFAST_NAS_CACHE": str(cache),
        "PYFAST_NAS_KERNELS": "require",
        **more,
    }


def run_tests(
    plugin: str, variables: dict[str, str], arguments: Sequence[str], stderr: int | None = None
) -> subprocess.CompletedProcess:
    """Run pytest with ``plugin``, which chooses the tests."""
    options = ["-q", "-n", "2", "-p", plugin, "-p", "no:benchmark", "--timeout", "300"]
    command = [sys.executable, "-m", "pytest", *options, *TESTS, *arguments]
    return subprocess.run(
        command, env=variables, cwd=REPOSITORY, stderr=stderr, text=True, errors="replace"
    )


def leave_out(config: pytest.Config, items: list[pytest.Item], unwanted) -> None:
    """Deselect the tests that ``unwanted`` says yes to."""
    left_out = [item for item in items if unwanted(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def parameters(item: pytest.Item) -> dict[str, object]:
    """Return what a test is parametrised with."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def shows_nothing(item: pytest.Item, mark: str) -> bool:
    """Say whether a test is of the reference, or of another device, or says so itself by a mark."""
    promises = {name for found in item.iter_markers("promise") for name in found.args}
    return (
        parameters(item).get("backend") == "reference"
        or any(item.get_closest_marker(name) for name in (mark, "long", "cuda"))
        or bool(promises and promises <= LEFT_OUT.keys())
    )
