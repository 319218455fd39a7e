"""What every benchmark of an operator runs on: devices with kernels, one thread and two."""

import os

import pytest
import torch

from benchmarks.record import copy_bandwidth
from pyfast_nas import _ext
from pyfast_nas.testing import devices


@pytest.fixture(scope="module", params=devices())
def device(request) -> str:
    if "reference" in _ext.kernels_in_use(request.param).values():
        pytest.skip(f"no kernel is compiled for {request.param}: the reference is no rival")
    return request.param


@pytest.fixture(scope="module")
def bandwidth(device) -> float:
    return copy_bandwidth(device)


@pytest.fixture(params=[1, 2], ids="{}_threads".format)
def threads(request, device):
    if device != "cpu" and request.param > 1:
        pytest.skip("threads matter on the CPU only")
    if request.param > (os.cpu_count() or 1):
        pytest.skip(f"this machine has fewer than {request.param} processors")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
