"""Edges, nodes, cells and super-nets: ``pytest benchmarks/bench_networks.py``.

With recomputation, forward and backward of the DARTS super-net take 663 M multiply-adds in
depthwise and 1,114 M in pointwise convolutions an image, and move about 85 MB, where eager PyTorch
keeps 120 MiB and passes over it several times: the ideal is bound by arithmetic, eager by memory.
"""

import pytest

from pyfast_nas.bench.record import OURS
from pyfast_nas.bench.session import bench_network
from pyfast_nas.bench.settings import Settings, network_cases

SETTINGS = Settings()
CASES = [case for what in ("edge", "cell", "supernet") for case in network_cases(what, SETTINGS)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.operator}: {case.name}")
def test_network(case, kernels, keep, benchmark):
    keep(bench_network(case, SETTINGS, print))
    ours = next(name for name in OURS if name in case.providers)
    benchmark.pedantic(case.workload(ours).call("both"), rounds=5, warmup_rounds=1)
