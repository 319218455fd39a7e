"""No kernel takes more of a GPU than the record says, and none spills registers."""

import json

import pytest

from csrc import build
from tests import cuda_resources

TOOLS = build.find_toolchain()

pytestmark = pytest.mark.skipif(
    not (TOOLS.nvcc and TOOLS.ninja), reason="no nvcc or no ninja on this machine"
)

REPORT = """
ptxas info    : Compiling entry function '_Z1fv' for 'sm_80'
ptxas info    : Function properties for _Z1fv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 96 bytes smem
"""


def major(version: str) -> str:
    return version.split(".")[0]


@pytest.mark.promise("B6")
@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_kernel_takes_what_the_record_says() -> None:
    record = json.loads(cuda_resources.RECORD.read_text())
    found = cuda_resources.measure(TOOLS)
    for architecture in cuda_resources.ARCHITECTURES:
        recorded, kernels = record["kernels"][architecture], found["kernels"][architecture]
        assert kernels.keys() == recorded.keys(), "run: python -m tests.cuda_resources"
        assert not [name for name, numbers in kernels.items() if numbers["spills"]]
        if major(found["nvcc"]) == major(record["nvcc"]):
            assert kernels == recorded, "run: python -m tests.cuda_resources"


def test_a_spill_is_read() -> None:
    numbers = {"registers": 40, "shared": 96, "spills": 16, "stack": 8}
    assert cuda_resources.parse(REPORT) == {"f()": numbers}
