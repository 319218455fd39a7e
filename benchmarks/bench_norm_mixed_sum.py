"""norm_mixed_sum against batch norms and a sum: ``pytest benchmarks/bench_norm_mixed_sum.py``.

Bound by memory like mixed_sum: the statistics read every tensor once more, and so do the sums that
backward needs before it can write. Forward moves 2 K + 1 tensors, backward 3 K + 2.
"""

import pytest

from pyfast_nas.bench.operators import NORM_MIXED_SUM_CASES, NormMixedSumCase


@pytest.mark.parametrize("mode", NormMixedSumCase.modes)
@pytest.mark.parametrize("case", NORM_MIXED_SUM_CASES, ids=lambda case: case.name)
def test_norm_mixed_sum(case, mode, run_operator):
    run_operator(case, mode)
