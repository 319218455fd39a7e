"""Inputs of mixed_sum, the same by plain PyTorch, and the bound that holds a result to it."""

import torch

from pyfast_nas import ops
from pyfast_nas.testing import DTYPES, assert_bound

# Candidates and weights: one dtype, or 16-bit candidates with float32 weights.
PAIRS = [(dtype, dtype) for dtype in DTYPES] + [
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]
COUNTS = (1, 2, 5, 8, 9, 33)
SIZES = (0, 1, 3, 31, 32, 33, 127, 1024, 1025, 4099, 9001)


def name(dtypes) -> str:
    return "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def make(shape, num_ops, pair=(torch.float32, torch.float32), seed=0):
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(shape, generator=generator).to(pair[0]) for _ in range(num_ops)]
    weights = torch.randn(num_ops, generator=generator).to(pair[1])
    grad = torch.randn(shape, generator=generator).to(torch.promote_types(*pair))
    return xs, weights, grad


def run(function, xs, weights, grad):
    """Return the sum, the gradient of the weights and those of the candidates."""
    xs = [x.detach().requires_grad_() for x in xs]
    weights = weights.detach().requires_grad_()
    y = function(xs, weights)
    return [y.detach(), *torch.autograd.grad(y, [weights, *xs], grad)]


def loop(xs, weights):
    """Plain PyTorch, in the dtypes as they come."""
    y = weights[0] * xs[0]
    for k in range(1, len(xs)):
        y = y + weights[k] * xs[k]
    return y


def check_against_float64(xs, weights, grad, device="cpu"):
    """Hold results on ``device`` to the bound against float64 on the CPU."""
    here = [x.to(device) for x in xs], weights.to(device), grad.to(device)
    got = run(ops.mixed_sum, *here)
    plain = run(loop, [x.to(grad.dtype) for x in here[0]], *here[1:])
    wide = [[x.double() for x in xs], weights.double(), grad.double()]
    want = run(loop, *wide)
    scales = run(loop, [x.abs() for x in wide[0]], wide[1].abs(), wide[2].abs())
    # Dots are added up in lanes and blocks: no value passes through more than a hundred sums.
    terms = [len(xs), 100, *[1] * len(xs)]
    for result, other, *truth, count in zip(got, plain, want, scales, terms, strict=True):
        assert_bound(result.cpu(), other.cpu(), *truth, count)
