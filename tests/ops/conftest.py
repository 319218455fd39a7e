"""Fixtures that run a test on every backend and on every instruction set of this processor."""

from collections.abc import Iterator

import pytest
import torch

from pyfast_nas import _ext
from pyfast_nas.testing import full_float32

NO_KERNELS = "no kernels are compiled here; the same test runs on the reference"


def kernels_are_compiled() -> bool:
    return set(_ext.kernels_in_use().values()) == {"compiled"}


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    """Hold float32 to what float32 means, on kernels of CUDA too."""
    with full_float32():
        yield


@pytest.fixture(params=["reference", "compiled"])
def backend(request) -> Iterator[str]:
    """Serve operators by the reference, then by the compiled kernels."""
    if request.param == "compiled" and not kernels_are_compiled():
        pytest.skip(NO_KERNELS)
    with _ext.use("reference" if request.param == "reference" else "require"):
        yield request.param


@pytest.fixture
def kernels() -> None:
    """Ask for compiled kernels: the test compares them with something else."""
    if not kernels_are_compiled():
        pytest.skip(NO_KERNELS)


@pytest.fixture(params=["plain", "avx2", "avx512"])
def instruction_set(request, kernels) -> Iterator[str]:
    """Run the compiled kernels on each instruction set in turn."""
    capability = torch.ops.pyfast_nas.cpu_capability
    before, level = capability(-1), ["plain", "avx2", "avx512"].index(request.param)
    try:
        if capability(level) != level:
            pytest.skip(f"this processor has no {request.param}")
        yield request.param
    finally:
        capability(before)
