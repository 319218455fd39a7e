"""What every benchmark runs on, and where its rows go."""

import os
from pathlib import Path

import pytest
import torch

from pyfast_nas import _ext
from pyfast_nas.bench import stamp, write
from pyfast_nas.bench.record import OURS, file_name
from pyfast_nas.bench.session import bench_operator
from pyfast_nas.bench.summary import table
from pyfast_nas.bench.timing import copy_bandwidth
from pyfast_nas.testing import devices

RESULTS = Path(__file__).parent / "results"
SECONDS = float(os.environ.get("BENCH_SECONDS", "1"))


def pytest_collection_modifyitems(items):
    for item in items:
        # Rivals may warn as they like: torch.compile does on import.
        item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture
def kernels():
    """Refuse to time the reference under our name."""
    if "reference" in _ext.kernels_in_use("cpu").values():
        pytest.skip("no kernel is compiled for cpu: the reference is no rival")


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


@pytest.fixture
def keep():
    """Write rows to the file of their device, and show them."""

    def write_and_show(rows, device="cpu"):
        path = RESULTS / file_name(device)
        records = stamp(rows, device)
        write(records, path)
        print(f"\n{rows[0].case}, {rows[0].threads} threads, written to {path}")
        for line in table(records)[1]:
            print("  ", *(f"{cell:>12}" for cell in line))

    return write_and_show


@pytest.fixture
def run_operator(threads, device, bandwidth, keep, benchmark):
    """Time all providers of an operator in one mode, ours once more by pytest-benchmark."""

    def run(case, mode):
        keep(
            bench_operator(case, mode, seconds=SECONDS, bandwidth=bandwidth, device=device), device
        )
        ours = next(name for name in OURS if name in case.workloads(device))
        call = case.workloads(device)[ours].call(mode)
        benchmark.pedantic(call, rounds=10, warmup_rounds=2)

    return run
