"""mixed_sum against plain PyTorch: ``pytest benchmarks/bench_mixed_sum.py``.

The ideal kernel is bound by memory. Forward reads K tensors and writes 1, backward reads K + 1 and
writes K: at 8 x [64, 16, 32, 32] in float32 that is 36 MiB and 68 MiB, with 2 K and 3 K operations
an element. Ordinary stores read each line before they write it, which makes the backward 100 MiB;
so a kernel at copy speed is expected to take about a third of the loop's time, and twice that of
anybody's on memory that the system has to hand out page by page.

Correctness comes first: a provider that computes something else stops the benchmark. All providers
of a case are timed in turn in one process, and the rows are written to benchmarks/results/.
"""

import os

import pytest
import torch

from benchmarks.cases import MIXED_SUM_CASES, MixedSumCase, mixed_sum_providers
from benchmarks.record import Row, measure, peak_bytes, write
from pyfast_nas.ops import reference
from pyfast_nas.testing import TOLERANCE, relative_error

# Rivals may warn as they like: torch.compile does on import.
pytestmark = pytest.mark.filterwarnings("ignore")

SECONDS = float(os.environ.get("BENCH_SECONDS", "1"))
MODES = ("forward", "backward", "both")


def calls(case: MixedSumCase, mode: str, device: str):
    """Return name -> call of every provider, each checked against float64 first."""
    xs, weights, gradient = case.make(device)
    leaves = [weights, *xs]
    plain = [t.detach() for t in leaves]
    truth = _derivatives(
        reference.mixed_sum,
        [t.detach().double().requires_grad_() for t in leaves],
        gradient.double(),
    )
    made = {}
    for name, function in mixed_sum_providers().items():
        got = _derivatives(function, leaves, gradient)
        for one, want in zip(got, truth, strict=True):
            error = relative_error(one, want)
            assert error <= TOLERANCE[case.dtype], f"{name} is wrong on {case.name}: {error:.1e}"
        made[name] = _call(function, mode, leaves, plain, gradient)
    return made


def _derivatives(function, leaves, gradient):
    y = function(leaves[1:], leaves[0])
    return [y, *torch.autograd.grad(y, leaves, gradient)]


def _call(function, mode, leaves, plain, gradient):
    if mode == "forward":

        def call():
            with torch.no_grad():
                return function(plain[1:], plain[0])

    elif mode == "backward":
        y = function(leaves[1:], leaves[0])

        def call():
            return torch.autograd.grad(y, leaves, gradient, retain_graph=True)

    else:

        def call():
            return torch.autograd.grad(function(leaves[1:], leaves[0]), leaves, gradient)

    return call


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", MIXED_SUM_CASES, ids=lambda case: case.name)
def test_mixed_sum(case, mode, threads, device, bandwidth, benchmark):
    providers = calls(case, mode, device)
    timings = measure(providers, seconds=SECONDS, device=device)
    moved = case.bytes_moved(mode)
    rows = [
        Row(
            operator="mixed_sum",
            case=case.name,
            mode=mode,
            provider=name,
            shape=[case.num_ops, *case.shape],
            dtype=str(case.dtype).removeprefix("torch."),
            threads=threads,
            timing=timing,
            bytes_moved=moved,
            copy_share=round(moved / (timing.p50 * 1e-6) / bandwidth, 3),
            peak_bytes=peak_bytes(providers[name], device),
        )
        for name, timing in timings.items()
    ]
    print(f"\n{case.name}, {mode}, {threads} threads, written to {write(rows, device)}")
    for name, timing in timings.items():
        ratio = timing.p50 / timings["fused"].p50
        print(f"  {name:13s} {timing.p50:10.1f} us   {ratio:5.2f} x fused")
    benchmark.extra_info.update({name: timing.p50 for name, timing in timings.items()})
    benchmark.pedantic(providers["fused"], rounds=10, warmup_rounds=2)
