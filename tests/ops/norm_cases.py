"""Inputs of norm_mixed_sum, the same by torch's own batch norm, and how large its terms are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.ops import Norm, reference_norm
from pyfast_nas.testing import DTYPES, accumulation_dtype, assert_bound

# Candidates, and everything else: one dtype, or 16-bit candidates with float32.
PAIRS = [(dtype, dtype) for dtype in DTYPES] + [
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]
# Kinds of candidates: no norm, a plain one, an affine one, both of these with given statistics.
KINDS = ("affine", "plain", "none", "given", "given_affine")


# Rows with a channel each, runs of one channel, pixels: around the sizes at which paths change.
SHAPES = [
    (2, 1),
    (31, 3),
    (33, 16),
    (127, 17),
    (1025, 2),
    (9, 1031),
    (3, 5, 16),
    (2, 3, 33),
    (4, 7, 15),
    (4, 16, 8, 8),
    (1, 2, 7, 7),
    (2, 3, 33, 33),
    (3, 70, 5, 5),
    (2, 3, 2, 3, 7),
]


def name(dtypes) -> str:
    return "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


class Case:
    """Tensors of one call and the gradient of its result."""

    def __init__(
        self, shape, num_ops, pair=(torch.float32,) * 2, kinds=KINDS, seed=0, mean=0.5, deviation=2
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        self.xs = [(draw(*shape) * deviation + mean).to(pair[0]) for _ in range(num_ops)]
        self.weights = draw(num_ops).to(pair[1])
        self.grad = draw(*shape).to(torch.promote_types(*pair))
        self.norms: list[Norm | None] = []
        for k in range(num_ops):
            kind = kinds[k % len(kinds)]
            if kind == "none":
                self.norms.append(None)
                continue
            channels = shape[1]
            gamma = beta = given_mean = given_var = None
            if kind.endswith("affine"):
                gamma, beta = draw(channels).to(pair[1]), draw(channels).to(pair[1])
            if kind.startswith("given"):
                given_mean = (draw(channels) + mean).to(pair[1])
                given_var = (draw(channels).square() + 0.5).to(pair[1])
            self.norms.append(Norm(gamma, beta, given_mean, given_var))

    def leaves(self) -> list[Tensor]:
        """Return what gradients are taken of: weights, candidates, gammas and betas."""
        return [self.weights, *self.xs, *params_of(self.norms)]

    def to(self, to: torch.dtype | torch.device | str) -> "Case":
        """Return a copy with every tensor in another dtype or on another device."""
        copy = Case.__new__(Case)
        copy.xs = [x.to(to) for x in self.xs]
        copy.weights, copy.grad = self.weights.to(to), self.grad.to(to)
        copy.norms = [norm and Norm(*_each(norm, to), norm.eps) for norm in self.norms]
        return copy


def _each(norm: Norm, to: torch.dtype | torch.device | str) -> list[Tensor | None]:
    return [None if t is None else t.to(to) for t in norm[:4]]


def channels_last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def params_of(norms) -> list[Tensor]:
    return [t for norm in norms if norm is not None for t in norm[:2] if t is not None]


def run(function, case: Case) -> list[Tensor]:
    """Return the sum, the statistics and the gradients of all leaves."""
    xs = [x.detach().requires_grad_() for x in case.xs]
    weights = case.weights.detach().requires_grad_()
    norms = []
    for norm in case.norms:
        if norm is not None and norm.gamma is not None:
            gamma, beta = (t.detach().requires_grad_() for t in norm[:2])
            norm = norm._replace(gamma=gamma, beta=beta)
        norms.append(norm)
    y, statistics = function(xs, weights, norms)
    gradients = torch.autograd.grad(y, [weights, *xs, *params_of(norms)], case.grad)
    return [y.detach(), statistics, *gradients]


def fused(xs, weights, norms):
    return ops.norm_mixed_sum(xs, weights, norms)


def eager(xs, weights, norms):
    """The same by torch's own batch norm and a loop, and statistics by torch's own reductions."""
    y, statistics = 0, []
    for weight, x, norm in zip(weights, xs, norms, strict=True):
        if norm is None:
            y = y + weight * x
            continue
        gamma, beta, mean, var, eps = norm
        y = y + weight * F.batch_norm(x, mean, var, gamma, beta, mean is None, 0.0, eps)
        if mean is None:
            dims = [dim for dim in range(x.dim()) if dim != 1]
            wide = x.detach().double()
            mean, var = wide.mean(dims), wide.var(dims, correction=0)
        statistics.append(torch.stack([mean.double(), var.double()]))
    return y, torch.stack(statistics) if statistics else None


def scales(case: Case) -> list[Tensor]:
    """Sums of the absolute values of the terms of the sum and of each gradient, in float64."""
    wide = case.to(torch.float64)
    grad = wide.grad.abs()
    dims = [dim for dim in range(grad.dim()) if dim != 1]
    of_xs, of_weights, of_params, y = [], [], [], torch.zeros_like(grad)
    for weight, x, norm in zip(wide.weights.abs(), wide.xs, wide.norms, strict=True):
        if norm is None:
            y = y + weight * x.abs()
            of_xs.append(weight * grad)
            of_weights.append((grad * x.abs()).sum())
            continue
        gamma, beta, mean, var, eps = norm
        is_given = mean is not None
        mean = mean if is_given else x.mean(dims)
        var = var if is_given else x.var(dims, correction=0)
        column = (-1, *(1,) * (x.dim() - 2))
        rho = (var + eps).rsqrt()
        n = ((x - mean.view(column)) * rho.view(column)).abs()
        size = torch.ones_like(rho) if gamma is None else gamma.abs()
        shift = torch.zeros_like(rho) if beta is None else beta.abs()
        term = size.view(column) * n + shift.view(column)
        y = y + weight * term
        of_weights.append((grad * term).sum())
        spread = grad
        if not is_given:
            spread = grad + grad.mean(dims, keepdim=True) + n * (grad * n).mean(dims, keepdim=True)
        of_xs.append(weight * (size * rho).view(column) * spread)
        if gamma is not None:
            of_params += [weight * (grad * n).sum(dims), weight * grad.sum(dims)]
    return [y, torch.stack(of_weights), *of_xs, *of_params]


def check_against_float64(case, function=fused, device="cpu"):
    """Hold results to the bound against float64 on the CPU; torch's batch norm is the yardstick."""
    here = case.to(device)
    got = [t.cpu() for t in run(function, here)]
    want = run(eager, case.to(torch.float64))
    halves = case.xs[0].dtype != accumulation_dtype(case.xs[0].dtype)
    plain = run(reference_norm.norm_mixed_sum if halves else eager, here)
    count = sum(norm is not None for norm in case.norms)
    assert got[1].shape == (count, 2, case.xs[0].shape[1])
    if count:
        scale = max(1.0, max(float(x.abs().max()) for x in case.xs))
        error = (got[1] - want[1]).abs().amax()
        unit = 1e-13 if case.xs[0].dtype == torch.float64 else 1e-6
        assert error <= unit * scale * scale
    # Sums over a channel are added up in lanes, rows and pieces.
    results = zip([got[0], *got[2:]], [plain[0], *plain[2:]], [want[0], *want[2:]], strict=True)
    for (one, other, truth), size in zip(results, scales(case), strict=True):
        assert_bound(one, other.cpu(), truth, size, 100 + len(case.xs))
