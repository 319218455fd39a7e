"""Gumbel-TopK sampling without replacement, and the counter-based random numbers under it.

Nothing here touches the state of a generator except ``draw_seed``: equal seeds give equal numbers
on every backend, thread count and device.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pyfast_nas.ops import reference
from pyfast_nas.ops._sampling_checks import (
    MAX_CANDIDATES,
    check_block,
    check_gumbel_topk,
    check_keys,
    check_seed,
    has_usable_keys,
)

__all__ = ["draw_seed", "gumbel_noise", "gumbel_topk", "philox_uniform"]


def gumbel_topk(
    logits: Tensor,
    k: int,
    *,
    tau: float,
    seed: Tensor,
    relaxation: str = "shared",
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Sample k candidates per edge without replacement and return their relaxed weights.

    Adds :math:`g = -\log(-\log u)` to the logits and keeps the k largest sums; the weights are
    the kept entries of a softmax of ``(logits + g) / tau`` over all candidates of the row, so
    they sum to at most one. Gradients flow to ``logits`` through the weights only.

    Args:
        logits: Architecture parameters, any floating type. ``-inf`` masks a candidate.
        k: Candidates kept per edge, at least 1 and at most the row's unmasked candidates.
        tau: Temperature, greater than zero. Small values approach a one-hot choice.
        seed: Seed and offset, int64 ``[2]``, on the device of ``logits``; equal seeds give equal
            samples on every backend.
        relaxation: ``"shared"`` as above, or ``"conditional"``: the weight of each rank comes
            from a softmax over the candidates that no earlier rank has taken.
        noise: Gumbel noise in place of the drawn one, shaped like ``logits``.

    Returns:
        ``weights`` and ``indices`` of the kept candidates, best first: descending logit plus
        noise, the lower index first among equals. Weights are float64 for float64 logits and
        float32 for all others, indices are int64.

    Shape:
        logits ``[num_edges, num_ops]`` -> weights ``[num_edges, k]``, indices ``[num_edges, k]``.

    Raises:
        ValueError: If ``k``, ``tau``, ``relaxation`` or a shape is out of range, a logit is NaN
            or +inf, or a row has fewer than k unmasked candidates.
        TypeError: If an argument has the wrong type or dtype.
        RuntimeError: If ``seed`` or ``noise`` is on another device.
        NotImplementedError: If a tensor is sparse, nested or without memory.

    Example:
        >>> seed = torch.tensor([0, 1])
        >>> weights, indices = gumbel_topk(torch.zeros(2, 4), k=2, tau=1.0, seed=seed)
        >>> bool((weights[:, 0] >= weights[:, 1]).all()), indices.shape
        (True, torch.Size([2, 2]))

    References:
        Kool, van Hoof & Welling, "Stochastic Beams and Where to Find Them", ICML 2019.
        Jang, Gu & Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017, eqs. 1-2.
    """
    check_gumbel_topk(logits, k, tau, seed, relaxation, noise)
    weights, indices, keys = reference.gumbel_topk(
        logits, k, tau, seed, relaxation == "conditional", True, noise
    )
    if _values_are_readable(keys) and not bool(has_usable_keys(keys, k)):
        check_keys(logits, noise, k)
    return weights, indices


def gumbel_noise(seed: Tensor, rows: int, columns: int) -> Tensor:
    r"""Return the Gumbel noise that ``gumbel_topk`` adds for this seed.

    .. math:: g = -\log(-\log u)

    Args:
        seed: Seed and offset, int64 ``[2]``.
        rows: Number of rows.
        columns: Number of columns, at most 65,536.

    Returns:
        Finite noise between -2.82 and 16.64, float32, on the device of ``seed``.

    Shape:
        seed ``[2]`` -> ``[rows, columns]``.

    Raises:
        ValueError: If a size is out of range.
        TypeError: If an argument has the wrong type or dtype.

    Example:
        >>> gumbel_noise(torch.tensor([0, 0]), 1, 4)
        tensor([[0.0848, 2.0617, 1.1812, 0.6897]])
    """
    if isinstance(columns, int) and columns > MAX_CANDIDATES:
        raise ValueError(f"gumbel_noise: columns must be at most {MAX_CANDIDATES}, got {columns}")
    return reference.gumbel_from_uniform(philox_uniform(seed, rows, columns))


def philox_uniform(
    seed: Tensor, rows: int, columns: int, *, stream: int = 0, first_row: int = 0
) -> Tensor:
    """Return uniform random numbers that depend on seed, offset, stream, row and column alone.

    The numbers are the odd multiples of 2^-24 between 0 and 1, made by Philox4x32-10. Rows drawn
    alone or in any grouping are the same; nothing is remembered between calls.

    Args:
        seed: Seed and offset, int64 ``[2]``.
        rows: Number of rows.
        columns: Number of columns, at most 2^26.
        stream: Which of 256 independent streams: 0 sampler noise, 1 assignment of sub-graphs,
            2 DropBlock, from 3 on free for the caller.
        first_row: Number of the first row; ``first_row + rows`` is at most 2^32.

    Returns:
        Numbers inside the open interval (0, 1), float32, on the device of ``seed``.

    Shape:
        seed ``[2]`` -> ``[rows, columns]``.

    Raises:
        ValueError: If a size, the stream or the first row is out of range.
        TypeError: If an argument has the wrong type or dtype.

    Example:
        >>> seed = torch.tensor([0, 0])
        >>> u = philox_uniform(seed, 3, 8)
        >>> bool(torch.equal(u[1:], philox_uniform(seed, 2, 8, first_row=1)))
        True

    References:
        Salmon, Moraes, Dror & Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    check_seed("philox_uniform", seed)
    check_block(first_row, rows, columns, stream)
    return reference.philox_uniform(seed, first_row, rows, columns, stream)


def draw_seed(
    generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw a seed tensor from torch's generator: the one step that moves generator state.

    Draw once per step and hand the same tensor to everything that samples in it.

    Args:
        generator: Source of the draw; torch's CPU generator when not given, so that a run on any
            device follows ``torch.manual_seed`` alike. With a CUDA generator the draw happens on
            its device and can be captured in a CUDA graph.
        device: Where the result is needed.

    Returns:
        A fresh random seed and the offset 0, int64 ``[2]``.

    Shape:
        ``[2]``.

    Example:
        >>> first = draw_seed(torch.Generator().manual_seed(7))
        >>> bool(torch.equal(first, draw_seed(torch.Generator().manual_seed(7))))
        True
    """
    source = "cpu" if generator is None else generator.device
    seed = torch.zeros(2, dtype=torch.int64, device=source)
    seed[:1].random_(generator=generator)
    return seed.to(device)


def _values_are_readable(tensor: Tensor) -> bool:
    """Say whether values may decide what happens next: not while tracing, batching or capturing."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if isinstance(tensor, FakeTensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
