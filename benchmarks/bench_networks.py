"""Edges, nodes, cells and supernets: ``pytest benchmarks/bench_networks.py``.

Forward and backward of the DARTS supernet ask for 1,196 M multiply-adds an image in its nodes, a
third of them in depthwise windows, and for 28 MB of traffic, where eager PyTorch keeps 120 MiB and
passes over it several times: the ideal is bound by arithmetic, eager by memory. What our nodes make
of it is measured by ``bench_profile.py``.
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
