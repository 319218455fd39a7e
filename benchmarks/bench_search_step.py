"""Whole search steps: ``pytest benchmarks/bench_search_step.py``.

A first-order step is one forward and backward for the architecture, which needs no gradient of the
weights, one for the weights, and two optimizers over 1,401 small tensors. MSG-DAS runs one of eight
candidates on every edge, K times for each pass, and the whole supernet once forward for guidance.
"""

import pytest

from pyfast_nas.bench.networks import DARTSCase
from pyfast_nas.bench.session import bench_steps
from pyfast_nas.bench.settings import Settings
from pyfast_nas.bench.steps import StepCase


@pytest.mark.timeout(1800)
def test_search_step(kernels, keep, benchmark):
    case = StepCase(net=DARTSCase())
    keep(bench_steps(case, Settings(), print))
    benchmark.pedantic(case.stepper("fused"), rounds=5, warmup_rounds=1)
