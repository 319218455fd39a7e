"""The meaning of every operator in plain PyTorch: the truth in tests, the fallback without kernels.

Every function here is differentiable by autograd to any order, works under forward mode, ``vmap``
and ``torch.compile``, and writes nothing in place.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = [
    "gumbel_from_uniform",
    "gumbel_topk",
    "gumbel_topk_backward",
    "gumbel_topk_double_backward",
    "mixed_sum",
    "mixed_sum_backward",
    "philox4x32",
    "philox_uniform",
    "philox_words",
    "relaxed_weights",
    "relaxed_weights_tangent",
    "usable_tau",
]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def mixed_sum(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Sum weights[k] * xs[k] over k, in the wider of the two dtypes (DARTS, eq. 2).

    Half types are summed in float32 and rounded once.
    """
    dtype = torch.promote_types(xs[0].dtype, weights.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    w = weights.to(wide)
    y = w[0] * xs[0].to(wide)
    for w_k, x in zip(w[1:].unbind(), xs[1:], strict=True):
        y = y + w_k * x.to(wide)
    return y.to(dtype)


def mixed_sum_backward(
    grad: Tensor, xs: Sequence[Tensor], weights: Tensor, wanted: Sequence[int], wants_weights: bool
) -> tuple[list[Tensor], Tensor]:
    """Return weights[k] * grad for the wanted k, and <grad, xs[k]> for all k (or nothing)."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    g, w = grad.to(wide), weights.to(wide)
    grad_xs = [(w[k] * g).to(xs[k].dtype) for k in wanted]
    if not wants_weights:
        return grad_xs, weights.new_empty(0)
    return grad_xs, torch.stack([(g * x.to(wide)).sum() for x in xs]).to(weights.dtype)


def philox4x32(
    counter: Sequence[Tensor], key: Sequence[Tensor], rounds: int = 10
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encrypt four counter words with two key words (Salmon et al., SC 2011).

    Words are int64 tensors holding 32-bit values; they broadcast against each other.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for index in range(rounds):
        if index:
            k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
        # The products wrap modulo 2^64, which keeps both halves right after masking.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((high >> 32) & _MASK) ^ c1 ^ k0,
            high & _MASK,
            ((low >> 32) & _MASK) ^ c3 ^ k1,
            low & _MASK,
        )
    return c0, c1, c2, c3


def philox_words(
    seed: Tensor, rows: int, columns: int, *, stream: int = 0, first_row: int = 0
) -> Tensor:
    """Return the random 32-bit words of a block of rows, int64 ``[rows, columns]``.

    Four columns share a counter ``(column // 4 | stream << 24, row, offset_lo, offset_hi)``, so a
    word depends on seed, offset, stream, row and column alone, never on how rows are grouped.
    """
    blocks = torch.arange((columns + 3) // 4, device=seed.device) | (stream << 24)
    row = torch.arange(first_row, first_row + rows, device=seed.device).unsqueeze(1)
    low, high = seed & _MASK, (seed >> 32) & _MASK
    words = philox4x32((blocks, row, low[1], high[1]), (low[0], high[0]))
    return torch.stack(words, dim=-1).flatten(1)[:, :columns]


def philox_uniform(seed: Tensor, first_row: int, rows: int, columns: int, stream: int) -> Tensor:
    """Return ((word >> 8) | 1) * 2^-24: exact in float32, never 0 and never 1."""
    words = philox_words(seed, rows, columns, stream=stream, first_row=first_row)
    return ((words >> 8) | 1).to(torch.float32) * 2.0**-24


def gumbel_from_uniform(u: Tensor) -> Tensor:
    """G = -log(-log u)."""
    return -torch.log(-torch.log(u))


def gumbel_topk(
    logits: Tensor,
    k: int,
    tau: float,
    seed: Tensor,
    conditional: bool,
    keep_keys: bool,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and indices of the k largest keys = logits + G, and the keys where they are kept.

    Keys are float64 for float64 logits and float32 for all others; ties go to the lower index.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rows, columns = logits.shape
    if noise is None:
        noise = gumbel_from_uniform(philox_uniform(seed, 0, rows, columns, 0).to(dtype))
    keys = logits.to(dtype) + noise.to(dtype)
    # torch.topk promises no order among equal keys, a stable sort does.
    indices = torch.sort(keys, dim=1, descending=True, stable=True).indices[:, :k].contiguous()
    weights = relaxed_weights(keys, indices, tau, conditional)
    return weights, indices, keys if keep_keys else keys.new_empty((0, columns))


def relaxed_weights(keys: Tensor, indices: Tensor, tau: float, conditional: bool) -> Tensor:
    """Weights of the kept candidates: softmax(keys / tau) over the row, or over what is left of it.

    The shared form takes one softmax for all ranks; in the conditional form rank r is normalised
    over the candidates that no earlier rank has taken.
    """
    softmaxes = _softmaxes(keys, indices, tau, conditional)
    return torch.cat([q.gather(1, kept) for q, kept in softmaxes], dim=1)


def relaxed_weights_tangent(
    tangent: Tensor, keys: Tensor, indices: Tensor, tau: float, conditional: bool
) -> Tensor:
    """Directional derivative of ``relaxed_weights`` along ``tangent`` of the keys."""
    softmaxes = _softmaxes(keys, indices, tau, conditional)
    return torch.cat([_through(q, tangent, tau).gather(1, kept) for q, kept in softmaxes], dim=1)


def gumbel_topk_backward(
    grad_weights: Tensor, keys: Tensor, indices: Tensor, tau: float, conditional: bool
) -> Tensor:
    """Gradient of ``relaxed_weights`` with respect to the keys, hence to the logits."""
    grad = torch.zeros_like(keys)
    for (q, kept), d in _with_parts(grad_weights, keys, indices, tau, conditional):
        grad = grad + _through(q, torch.zeros_like(q).scatter(1, kept, d), tau)
    return grad


def gumbel_topk_double_backward(
    cotangent: Tensor,
    grad_weights: Tensor,
    keys: Tensor,
    indices: Tensor,
    tau: float,
    conditional: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of <cotangent, gumbel_topk_backward> with respect to grad_weights and keys."""
    h = cotangent
    by_keys = torch.zeros_like(keys)
    for (q, kept), d in _with_parts(grad_weights, keys, indices, tau, conditional):
        d = torch.zeros_like(q).scatter(1, kept, d)
        mean_d, mean_h = (q * d).sum(1, keepdim=True), (q * h).sum(1, keepdim=True)
        # <h, q (d - mean_d)> / tau differentiated by q, then through the softmax.
        by_q = (h * d - h * mean_d - d * mean_h) / usable_tau(tau, q.dtype)
        by_keys = by_keys + _through(q, by_q, tau)
    return relaxed_weights_tangent(h, keys, indices, tau, conditional), by_keys


def _softmaxes(
    keys: Tensor, indices: Tensor, tau: float, conditional: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each softmax over a row with the kept columns it weighs: one for all ranks, or each."""
    if not conditional:
        yield _tempered_softmax(keys, indices[:, :1], tau), indices
        return
    taken = torch.zeros_like(keys, dtype=torch.bool)
    for kept in indices.split(1, dim=1):
        yield _tempered_softmax(keys.masked_fill(taken, -torch.inf), kept, tau), kept
        taken = taken.scatter(1, kept, True)


def _with_parts(
    grad_weights: Tensor, keys: Tensor, indices: Tensor, tau: float, conditional: bool
) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Pair each softmax with its part of the gradient of the weights."""
    parts = grad_weights.split(1, dim=1) if conditional else (grad_weights,)
    return zip(_softmaxes(keys, indices, tau, conditional), parts, strict=True)


def _tempered_softmax(keys: Tensor, best: Tensor, tau: float) -> Tensor:
    """softmax(keys / tau) of rows whose largest key stands at ``best`` [rows, 1]."""
    # Subtracted before the division, a tiny tau gives 0 and -inf, never inf - inf.
    return torch.softmax(
        (keys - keys.detach().gather(1, best)) / usable_tau(tau, keys.dtype), dim=1
    )


def _through(q: Tensor, v: Tensor, tau: float) -> Tensor:
    """Multiply by the Jacobian of q = softmax(keys / tau), which is symmetric."""
    return q * (v - (q * v).sum(1, keepdim=True)) / usable_tau(tau, q.dtype)


def usable_tau(tau: float, dtype: torch.dtype) -> float:
    """Keep tau and 1 / tau finite and positive in ``dtype``, so that 0 / tau stays 0."""
    limits = torch.finfo(dtype)
    return min(max(tau, limits.tiny), limits.max)
