"""What the tests of a GPU share: each runs on the CPU as well, on the smaller part of its grid.

``make gpu-check`` runs them with pytest alone, so they use no plugin's marks and options.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

from pyfast_nas import _ext
from pyfast_nas.testing import full_float32
from tests.gpu.waits import WouldWait


def pytest_configure() -> None:
    """Let cuBLAS start in the one way that gives the same bits each time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    """Hold rivals in float32 to what float32 means."""
    with full_float32():
        yield


@pytest.fixture
def kernels(device) -> None:
    """Ask for compiled kernels: plain operations hold more memory and look at values."""
    if set(_ext.kernels_in_use(device).values()) != {"compiled"}:
        pytest.skip(f"no kernels for {device} are compiled here")


@pytest.fixture
def never_waits(device, kernels) -> Callable[[], contextlib.AbstractContextManager]:
    """Give a block that raises at whatever makes the host wait for the device."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mode says that it does not see everything yet
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    return WouldWait if device == "cpu" else block
