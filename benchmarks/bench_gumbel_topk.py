"""gumbel_topk against plain PyTorch: ``pytest benchmarks/bench_gumbel_topk.py``.

The ideal kernel is bound by arithmetic: a number costs a quarter of a Philox block (ten rounds of
two products), two logarithms and one exponential, in all about 80 vector instructions for every 16
numbers with AVX-512, so some 1.5 ns a number on one core at 2.3 GHz against 4 bytes read. At a few
rows the call itself is what counts: about 1 us for each tensor that is made.
"""

import pytest

from pyfast_nas.bench.sampling import GUMBEL_TOPK_CASES, GumbelTopKCase


@pytest.mark.parametrize("mode", GumbelTopKCase.modes)
@pytest.mark.parametrize("case", GUMBEL_TOPK_CASES, ids=lambda case: case.name)
def test_gumbel_topk(case, mode, run_operator):
    run_operator(case, mode)
