"""ops.tensor_list against torch._foreach_ and loops: ``pytest benchmarks/bench_tensor_list.py``.

Bound by memory where the tensors lie in one buffer: a Neumann update reads three vectors and writes
two, 39 MB for the 1.9 million weights of the DARTS supernet in float32, with three operations a
number; a central difference reads seven and writes three. torch._foreach_ makes seven passes of the
update, and looks at 1,399 tensors in each call, which takes as long as the passes. So does ours
where every tensor lies by itself, once.
"""

import pytest

from pyfast_nas.bench.tensor_lists import TENSOR_LIST_CASES, NeumannCase


@pytest.mark.parametrize("mode", NeumannCase.modes)
@pytest.mark.parametrize("case", TENSOR_LIST_CASES, ids=lambda case: case.name)
def test_tensor_list(case, mode, run_operator):
    run_operator(case, mode)
