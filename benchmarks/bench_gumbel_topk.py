"""gumbel_topk against plain PyTorch: ``pytest benchmarks/bench_gumbel_topk.py``.

The ideal kernel is bound by arithmetic: a number costs a quarter of a Philox block (ten rounds of
two products), two logarithms and one exponential, in all about 80 vector instructions for every 16
numbers with AVX-512, so some 1.5 ns a number on one core at 2.3 GHz against 4 bytes read. At a few
rows the call itself is what counts: about 1 us for each tensor that is made.

Correctness comes first: the kernel is compared with the reference, the rivals are checked to return
k distinct candidates with the weights of a softmax. All providers of a case are timed in turn in
one process, and the rows are written to benchmarks/results/.
"""

import os

import pytest
import torch

from benchmarks.record import Row, measure, peak_bytes, write
from pyfast_nas import ops
from pyfast_nas.ops import reference

# Rivals may warn as they like: torch.compile does on import.
pytestmark = pytest.mark.filterwarnings("ignore")

SECONDS = float(os.environ.get("BENCH_SECONDS", "1"))
TAU = 1.0
CASES = {
    "14x8_k2": (14, 8, 2),
    "1024x8_k2": (1024, 8, 2),
    "65536x16_k2": (65536, 16, 2),
    "4096x1024_k8": (4096, 1024, 8),
}


def noise_by_rand(logits, k):
    g = -torch.log(-torch.log(torch.rand_like(logits) + 1e-20) + 1e-20)
    q = torch.softmax((logits + g) / TAU, dim=1)
    return torch.topk(q, k, dim=1)


def exponential_topk(logits, k):
    keys = logits - torch.empty_like(logits).exponential_().log()
    best, indices = torch.topk(keys, k, dim=1)
    return torch.exp((best - (keys / TAU).logsumexp(1, keepdim=True) * TAU) / TAU), indices


def exponential_softmax(logits, k):
    race = torch.empty_like(logits).exponential_()
    q = torch.softmax((logits - race.log()) / TAU, dim=1)
    return torch.topk(q, k, dim=1)


def exponential_in_place(logits, k):
    if torch.is_grad_enabled() and logits.requires_grad:
        return exponential_softmax(logits, k)
    keys = torch.empty_like(logits).exponential_().log_()
    q = torch.softmax(torch.sub(logits, keys, out=keys).div_(TAU), dim=1)
    return torch.topk(q, k, dim=1)


def fused(logits, k, seed):
    return ops.gumbel_topk(logits, k, tau=TAU, seed=seed)


def providers(logits, k):
    """Return name -> call of every provider, each checked first."""
    seed = ops.draw_seed(torch.Generator().manual_seed(0), logits.device)
    torch._dynamo.reset()
    compiled = torch.compile(exponential_softmax, dynamic=False)
    made = {
        "rand": lambda x: noise_by_rand(x, k),
        "exponential_topk": lambda x: exponential_topk(x, k),
        "exponential_softmax": lambda x: exponential_softmax(x, k),
        "exponential_in_place": lambda x: exponential_in_place(x, k),
        "compiled": lambda x: compiled(x, k),
        "fused": lambda x: fused(x, k, seed),
    }
    for name, call in made.items():
        weights, indices = call(logits)
        assert weights.shape == indices.shape == (logits.shape[0], k), name
        assert bool((indices.sort(1).values.diff(dim=1) > 0).all()), name
        assert bool((weights.sum(1) <= 1 + 1e-5).all()), name
        assert bool((weights.diff(dim=1) <= 0).all()), name
    weights, indices = made["fused"](logits)
    want, picks, _ = reference.gumbel_topk(logits.double(), k, TAU, seed, False, True)
    same = (indices == picks).all(1)
    assert float((~same).double().mean()) < 1e-3
    assert float((weights - want)[same].abs().max()) < 5e-6
    return made


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["forward", "both"])
@pytest.mark.parametrize("case", CASES)
def test_gumbel_topk(case, mode, threads, device, bandwidth, benchmark):
    rows, columns, k = CASES[case]
    logits = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(device)
    calls = {name: _call(function, mode, logits) for name, function in providers(logits, k).items()}
    timings = measure(calls, seconds=SECONDS, device=device)
    # Backward reads the keys and writes as much.
    moved = rows * (4 * columns + 12 * k) + (rows * 12 * columns if mode == "both" else 0)
    result = [
        Row(
            operator="gumbel_topk",
            case=case,
            mode=mode,
            provider=name,
            shape=[rows, columns, k],
            dtype="float32",
            threads=threads,
            timing=timing,
            bytes_moved=moved,
            copy_share=round(moved / (timing.p50 * 1e-6) / bandwidth, 3),
            peak_bytes=peak_bytes(calls[name], device),
        )
        for name, timing in timings.items()
    ]
    print(f"\n{case}, {mode}, {threads} threads, written to {write(result, device)}")
    for name, timing in timings.items():
        ratio = timing.p50 / timings["fused"].p50
        print(f"  {name:21s} {timing.p50:10.1f} us   {ratio:5.2f} x fused")
    benchmark.extra_info.update({name: timing.p50 for name, timing in timings.items()})
    benchmark.pedantic(calls["fused"], rounds=10, warmup_rounds=2)


def _call(function, mode, logits):
    if mode == "forward":

        def call():
            return function(logits)

    else:
        leaf = logits.clone().requires_grad_()

        def call():
            return torch.autograd.grad(function(leaf)[0].sum(), leaf)

    return call
