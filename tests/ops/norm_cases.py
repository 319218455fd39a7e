"""Inputs of norm_mixed_sum, the same by torch's own batch norm, and how large its terms are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.ops import Norm
from pyfast_nas.testing import DTYPES

# Candidates, and everything else: one dtype, or 16-bit candidates with float32.
PAIRS = [(dtype, dtype) for dtype in DTYPES] + [
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
]
# Kinds of candidates: no norm, a plain one, an affine one, both of these with given statistics.
KINDS = ("affine", "plain", "none", "given", "given_affine")


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

    def to(self, dtype: torch.dtype) -> "Case":
        """Return a copy with every tensor in ``dtype``."""
        copy = Case.__new__(Case)
        copy.xs = [x.to(dtype) for x in self.xs]
        copy.weights, copy.grad = self.weights.to(dtype), self.grad.to(dtype)
        copy.norms = [norm and Norm(*_each(norm, dtype), norm.eps) for norm in self.norms]
        return copy


def _each(norm: Norm, dtype: torch.dtype) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype) for t in norm[:4]]


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
