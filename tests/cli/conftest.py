"""Finished runs that several tests read, and a way to call the program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyfast_nas.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory) -> Path:
    """Run folder of a tiny search on the toy space, with a comparison."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    words = ["search", "--space", "toy", "--data", "toy", "--algorithm", "darts", "--epochs", "2"]
    words += ["--compare", "2", "--compare-seeds", "2", "--train-epochs", "1", "--alpha-lr", "0.05"]
    assert main([*words, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """Run folder of a tiny search on the embedded digits, without comparison."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    words = ["search", "--algorithm", "msg-das", "--paths", "2", "--channels", "2", "--cells", "2"]
    words += [
        "--nodes",
        "2",
        "--operations",
        "none",
        "skip_connect",
        "sep_conv_3x3",
        "max_pool_3x3",
    ]
    words += ["--epochs", "1", "--batch-size", "128", "--compare", "0", "--alpha-warmup", "0"]
    assert main([*words, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def program():
    """Start ``python -m pyfast_nas`` in a process of its own."""

    def start(*words, **changes):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        environment |= changes.pop("env", {})
        options = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **changes}
        return subprocess.Popen(
            [sys.executable, "-m", "pyfast_nas", *map(str, words)], env=environment, **options
        )

    return start
