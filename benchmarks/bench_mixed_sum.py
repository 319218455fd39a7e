"""mixed_sum against plain PyTorch: ``pytest benchmarks/bench_mixed_sum.py``.

The ideal kernel is bound by memory. Forward reads K tensors and writes 1, backward reads K + 1 and
writes K: at 8 x [64, 16, 32, 32] in float32 that is 36 MiB and 68 MiB, with 2 K and 3 K operations
an element. Ordinary stores read each line before they write it, which makes the backward 100 MiB;
so a kernel at copy speed is expected to take about a third of the loop's time, and twice that of
anybody's on memory that the system has to hand out page by page.
"""

import pytest

from pyfast_nas.bench.operators import MIXED_SUM_CASES, MixedSumCase


@pytest.mark.parametrize("mode", MixedSumCase.modes)
@pytest.mark.parametrize("case", MIXED_SUM_CASES, ids=lambda case: case.name)
def test_mixed_sum(case, mode, run_operator):
    run_operator(case, mode)
