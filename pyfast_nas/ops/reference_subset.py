r"""The relaxed subset in plain PyTorch: softmaxes one after another, each fed by what is left.

With scores :math:`a^1 = \kappa`, the keys, rank r takes :math:`q^r = softmax(a^r / \tau)` and
leaves :math:`a^{r+1} = a^r + \log \max(1 - q^r, tiny)`, tiny the smallest normal float32
(Xie & Ermon, "Reparameterizable Subset Sampling via Continuous Relaxations", IJCAI 2019).
Functions as in :mod:`pyfast_nas.ops.reference`, of one kind only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pyfast_nas.ops.reference import usable_tau

__all__ = [
    "relaxed_k_hot",
    "subset_weights",
    "subset_weights_backward",
    "subset_weights_double_backward",
    "subset_weights_tangent",
]

_TINY = torch.finfo(torch.float32).tiny


class _Rank(NamedTuple):
    """The softmax of one rank; ``[rows, 1]`` or ``[rows, columns]`` each."""

    e: Tensor  # exp((a - max a) / tau)
    total: Tensor  # sum of e
    left: Tensor  # total (1 - q), of the best candidate without a difference
    is_best: Tensor
    is_open: Tensor  # whether 1 - q is at least tiny, hence has a derivative

    @property
    def q(self) -> Tensor:
        return self.e / self.total


def relaxed_k_hot(keys: Tensor, k: int, tau: float) -> Tensor:
    """Sum of the softmaxes of all ranks, ``[rows, columns]``: each row sums to k."""
    return torch.stack([rank.q for rank in _ranks(keys, k, tau)]).sum(0)


def subset_weights(keys: Tensor, indices: Tensor, tau: float) -> Tensor:
    """Return q of rank r at the candidate that was picked at rank r, ``[rows, k]``."""
    ranks = _ranks(keys, indices.shape[1], tau)
    picks = indices.split(1, dim=1)
    return torch.cat([rank.q.gather(1, pick) for rank, pick in zip(ranks, picks, strict=True)], 1)


def subset_weights_tangent(tangent: Tensor, keys: Tensor, indices: Tensor, tau: float) -> Tensor:
    """Directional derivative of ``subset_weights`` along ``tangent`` of the keys."""
    columns = []
    ranks = _ranks(keys, indices.shape[1], tau)
    for rank, pick in zip(ranks, indices.split(1, dim=1), strict=True):
        e = rank.e * tangent / usable_tau(tau, keys.dtype)
        total = e.sum(1, keepdim=True)
        columns.append(((e - rank.q * total) / rank.total).gather(1, pick))
        others = e.masked_fill(rank.is_best, 0).sum(1, keepdim=True)
        left = torch.where(rank.is_best, others, total - e)
        of_log = left / _divisor(rank) - total / rank.total
        tangent = tangent + of_log.masked_fill(~rank.is_open, 0)
    return torch.cat(columns, dim=1)


def subset_weights_backward(
    grad_weights: Tensor, keys: Tensor, indices: Tensor, tau: float
) -> Tensor:
    """Gradient of ``subset_weights`` with respect to the keys, from the last rank up."""
    ranks = list(_ranks(keys, indices.shape[1], tau))
    parts = zip(ranks, indices.split(1, dim=1), grad_weights.split(1, dim=1), strict=True)
    grad = torch.zeros_like(keys)
    for rank, pick, d in reversed(list(parts)):
        q = rank.q
        through_weight = q * (torch.zeros_like(q).scatter(1, pick, d) - d * q.gather(1, pick))
        through_log = _through_log(rank, grad.masked_fill(~rank.is_open, 0))
        grad = grad + (through_weight + through_log) / usable_tau(tau, keys.dtype)
    return grad


def subset_weights_double_backward(
    cotangent: Tensor, grad_weights: Tensor, keys: Tensor, indices: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """Gradients of <cotangent, subset_weights_backward> by grad_weights and keys.

    That product is <grad_weights, subset_weights_tangent(cotangent)>, which is differentiated.
    """
    by_grad_weights, pull_back = torch.func.vjp(
        lambda keys: subset_weights_tangent(cotangent, keys, indices, tau), keys
    )
    return by_grad_weights, pull_back(grad_weights)[0]


def _ranks(keys: Tensor, k: int, tau: float) -> Iterator[_Rank]:
    a = keys
    for _ in range(k):
        # The largest score does not count: a softmax has no derivative along a shift of its row.
        fixed = a.detach()
        best = fixed.argmax(1, keepdim=True)
        e = torch.exp((a - fixed.gather(1, best)) / usable_tau(tau, keys.dtype))
        total = e.sum(1, keepdim=True)
        is_best = torch.zeros_like(e, dtype=torch.bool).scatter(1, best, True)
        others = e.masked_fill(is_best, 0).sum(1, keepdim=True)
        left = torch.where(is_best, others, total - e)
        share = left / total
        yield _Rank(e, total, left, is_best, share >= _TINY)
        a = a + share.clamp(min=_TINY).log()


def _through_log(rank: _Rank, grad: Tensor) -> Tensor:
    """Multiply by e and the transposed derivative of log(left / total) by e."""
    # What a candidate other than the best one gets for its own share is bounded by its gradient.
    own = (grad / _divisor(rank).masked_fill(rank.is_best, 1)).masked_fill(rank.is_best, 0)
    of_best = grad.masked_fill(~rank.is_best, 0).sum(1, keepdim=True)
    left_by_best = _divisor(rank).masked_fill(~rank.is_best, 0).sum(1, keepdim=True)
    # sum of grad / left - grad / total over all but the best, without their difference.
    shared = (own * rank.e).sum(1, keepdim=True) / rank.total - of_best / rank.total
    of_others = (rank.e / left_by_best * of_best).masked_fill(rank.is_best, 0)
    return rank.e * (shared - own) + of_others


def _divisor(rank: _Rank) -> Tensor:
    return rank.left.masked_fill(~rank.is_open, 1)
