"""Whole architectures without replacement: a beam search on perturbed log-probabilities.

As printed by Kool et al.; one more architecture than asked for is kept to the end, whose key is the
threshold of the importance weights.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyfast_nas import ops

__all__ = ["Beam", "stochastic_beam_search"]


class Beam(NamedTuple):
    """Distinct architectures, best key first.

    Attributes:
        choices: Candidate of every row, ``[draws, k, rows]``.
        log_probs: Log-probability of each architecture, ``[draws, k]``.
        weights: What makes ``(weights * values).sum(1)`` an unbiased estimate of the expectation
            of the values over all architectures, ``[draws, k]``.
    """

    choices: Tensor
    log_probs: Tensor
    weights: Tensor


def stochastic_beam_search(logits: Tensor, k: int, *, seed: Tensor, draws: int = 1) -> Beam:
    r"""Draw k whole architectures without replacement from the product of the rows' softmaxes.

    Rows are decided one after another. A partial architecture carries the largest key of all that
    extend it; its children get fresh Gumbel keys, shifted so that their maximum is that key.

    Args:
        logits: Architecture parameters of all rows; ``-inf`` masks a candidate.
        k: Architectures to draw, at most as many as there are.
        seed: Seed and offset, int64 ``[2]``, on the device of ``logits``.
        draws: Independent searches to make at once.

    Raises:
        ValueError: If a logit is NaN or +inf, or there are fewer than k architectures.

    Shape:
        logits ``[rows, num_ops]`` -> choices ``[draws, k, rows]``.

    Example:
        >>> beam = stochastic_beam_search(torch.zeros(3, 2), 8, seed=torch.tensor([0, 0]))
        >>> len(set(map(tuple, beam.choices[0].tolist()))), round(beam.weights.sum().item(), 5)
        (8, 1.0)

    References:
        Kool, van Hoof & Welling, "Stochastic Beams and Where to Find Them", ICML 2019, algorithm 1.
    """
    is_bad = logits.isnan() | (logits == math.inf)
    if bool(is_bad.any()):
        row, column = is_bad.nonzero()[0].tolist()
        raise ValueError(
            f"stochastic_beam_search: logits must be finite or minus infinity, "
            f"got {logits[row, column].item()} in row {row}, column {column}"
        )
    total = math.prod((logits > -math.inf).sum(1).tolist())
    if not 1 <= k <= total:
        raise ValueError(
            f"stochastic_beam_search: k must be between 1 and the {total} architectures, got {k}"
        )
    log_p = torch.log_softmax(logits.double(), 1)
    phi = log_p.new_zeros(draws, 1)
    key, next_row = _noise(seed, draws, 1, 0), draws
    choices = torch.empty(draws, 1, 0, dtype=torch.int64, device=logits.device)
    for row in log_p:
        beams, columns = phi.shape[1], len(row)
        noise = _noise(seed, draws * beams, columns, next_row).view(draws, beams, columns)
        next_row += draws * beams
        phi_children = phi.unsqueeze(2) + row
        keys = _shifted(key, phi_children + noise).flatten(1)
        # One more than k: its key is the threshold of the importance weights.
        key, kept = keys.topk(min(k + 1, keys.shape[1]))
        phi = phi_children.flatten(1).gather(1, kept)
        parents = (kept // columns).unsqueeze(2).expand(-1, -1, choices.shape[2])
        choices = torch.cat([choices.gather(1, parents), (kept % columns).unsqueeze(2)], 2)
    log_probs = phi[:, :k]
    threshold = key[:, k:] if key.shape[1] > k else key.new_full((draws, 1), -math.inf)
    weights = log_probs.exp() / -torch.expm1(-torch.exp(log_probs - threshold))
    return Beam(choices[:, :k], log_probs, weights)


def _noise(seed: Tensor, rows: int, columns: int, first_row: int) -> Tensor:
    u = ops.philox_uniform(seed, rows, columns, first_row=first_row).double()
    return -torch.log(-torch.log(u))


def _shifted(key: Tensor, keys: Tensor) -> Tensor:
    """Shift each beam's keys of children so that their largest is the key of the parent."""
    gap = keys - keys.amax(2, keepdim=True)
    v = key.unsqueeze(2) - keys + _log1mexp(gap)
    shifted = key.unsqueeze(2) - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    return shifted.masked_fill(keys == -math.inf, -math.inf)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, without cancellation at either end."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
