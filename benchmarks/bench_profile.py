"""Where the time of our supernets goes: ``pytest benchmarks/bench_profile.py``.

For a batch of 16 the nodes of the DARTS supernet ask for 9.6 GFLOP forward and 28.7 backward, and
for 162 and 293 MB of traffic: 59 and 98 operations a byte, several times what a processor does
while a byte comes from memory. NAS-Bench-201 is alike: both are bound by arithmetic.
"""

import pytest

from pyfast_nas.bench.profile import bench_profile
from pyfast_nas.bench.record import OURS
from pyfast_nas.bench.settings import Settings, network_cases

SETTINGS = Settings()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", network_cases("supernet", SETTINGS), ids=lambda case: case.name)
def test_profile(case, kernels, keep, benchmark):
    keep(bench_profile(case, SETTINGS, print))
    ours = next(name for name in OURS if name in case.providers)
    benchmark.pedantic(case.workload(ours).call("both"), rounds=2, warmup_rounds=1)
