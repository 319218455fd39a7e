"""Gumbel-TopK sampling without replacement, and the counter-based random numbers under it.

Nothing here touches the state of a generator except ``draw_seed``: equal seeds give equal numbers
on every backend, thread count and device.
"""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from pyfast_nas import _ext
from pyfast_nas.ops import _library, reference, reference_subset
from pyfast_nas.ops._sampling_checks import (
    RELAXATIONS,
    check_block,
    check_gumbel_topk,
    check_keys,
    check_seed,
    has_usable_keys,
)
from pyfast_nas.ops.subset_weights import subset_weights

_CPU = torch.device("cpu")
_PLAIN_TENSORS = (Tensor, torch.nn.Parameter)
_PLAIN_NOISE = (type(None), *_PLAIN_TENSORS)

__all__ = [
    "draw_seed",
    "forget_refusals",
    "gumbel_noise",
    "gumbel_topk",
    "philox_uniform",
    "relaxed_k_hot",
]


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
        relaxation: ``"shared"`` as above; ``"conditional"``: the weight of each rank comes from a
            softmax over the candidates that no earlier rank has taken; or ``"subset"``: from a
            softmax that earlier ranks have weakened by as much as they gave, column r of the
            weights being rank r's share of the candidate picked there. Of these
            :func:`relaxed_k_hot` returns the sum over ranks for every candidate.
        noise: Gumbel noise in place of the drawn one, shaped like ``logits``.

    Returns:
        ``weights`` and ``indices`` of the kept candidates, best first: descending logit plus
        noise, the lower index first among equals. Weights are float64 for float64 logits and
        float32 for all others, indices are int64.

    Shape:
        logits ``[num_edges, num_ops]`` -> weights ``[num_edges, k]``, indices ``[num_edges, k]``.

    Raises:
        ValueError: If ``k``, ``tau``, ``relaxation`` or a shape is out of range, a logit is NaN
            or +inf, or a row has fewer than k unmasked candidates. On a GPU, where nobody waits for
            the values, such a row gets indices of -1 and weights of zero, and the next call is
            refused: see :func:`forget_refusals`.
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
        Xie & Ermon, "Reparameterizable Subset Sampling via Continuous Relaxations", IJCAI 2019.
    """
    is_subset = relaxation == "subset"
    if (
        type(logits) in _PLAIN_TENSORS
        and type(noise) in _PLAIN_NOISE
        and type(k) is int
        and type(tau) is float
        and relaxation in RELAXATIONS
        and _is_untracked(logits, noise)
        and (logits.is_cpu or logits.is_cuda)
        and _ext.compiled_for(_CPU if logits.is_cpu else logits.device)
    ):
        # The kernel checks all that is left to check; who was wrong is found out afterwards.
        keyset = _library.CPU_KEYS if logits.is_cpu else _library.CUDA_KEYS
        try:
            weights, indices, keys = _library.run_gumbel_topk(
                keyset, logits, k, tau, seed, relaxation == "conditional", is_subset, noise
            )
        except (RuntimeError, TypeError):
            _refuse(logits, k, tau, seed, relaxation, noise)
            raise
        return (subset_weights(keys, indices, tau) if is_subset else weights), indices
    check_gumbel_topk(logits, k, tau, seed, relaxation, noise)
    arguments = (logits, noise, seed, k, float(tau), relaxation == "conditional")
    if not _ext.compiled_for(logits.device):
        weights, indices, keys = _sample_by_reference(*arguments)
    elif torch.compiler.is_compiling():
        weights, indices, keys = _sample_opaquely(*arguments, keep_keys=is_subset)
    else:
        weights, indices, keys = _GumbelTopK.apply(*arguments)
    return (subset_weights(keys, indices, float(tau)) if is_subset else weights), indices


def relaxed_k_hot(
    logits: Tensor, k: int, *, tau: float, seed: Tensor, noise: Tensor | None = None
) -> Tensor:
    r"""Relax the k-hot vector of the k candidates that ``gumbel_topk`` keeps, for every candidate.

    The scores :math:`a^1` are the logits plus Gumbel noise; each rank takes
    :math:`q^r = \mathrm{softmax}(a^r / \tau)` and leaves
    :math:`a^{r+1} = a^r + \log(1 - q^r)`, the difference kept at 1.2e-38 or more. Returns
    :math:`\sum_r q^r`, computed and differentiated by plain PyTorch operations. As
    :math:`\tau \to 0` it tends to the k-hot vector; at high temperature entries may exceed one.

    Args:
        logits: Architecture parameters, any floating type. ``-inf`` masks a candidate.
        k: Candidates kept per edge, at least 1 and at most the row's unmasked candidates.
        tau: Temperature, greater than zero.
        seed: Seed and offset, int64 ``[2]``, on the device of ``logits``.
        noise: Gumbel noise in place of the drawn one, shaped like ``logits``.

    Returns:
        Relaxed memberships, each row summing to k; float64 for float64 logits, else float32.

    Shape:
        logits ``[num_edges, num_ops]`` -> ``[num_edges, num_ops]``.

    Raises:
        ValueError: As ``gumbel_topk``, like all other errors.

    Example:
        >>> relaxed = relaxed_k_hot(torch.zeros(2, 4), 2, tau=0.5, seed=torch.tensor([0, 1]))
        >>> bool(torch.allclose(relaxed.sum(1), torch.full((2,), 2.0)))
        True

    References:
        Xie & Ermon, "Reparameterizable Subset Sampling via Continuous Relaxations", IJCAI 2019.
    """
    check_gumbel_topk(logits, k, tau, seed, "subset", noise)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if noise is None:
        noise = _noise(seed, *logits.shape, dtype)
    keys = logits.to(dtype) + noise.to(dtype)
    if _values_are_readable(keys) and not bool(has_usable_keys(keys, k)):
        check_keys(logits, noise, k)
    return reference_subset.relaxed_k_hot(keys, k, float(tau))


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
    check_seed("gumbel_noise", seed)
    check_block("gumbel_noise", rows, columns)
    return _noise(seed, rows, columns, torch.float32)


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
    check_block("philox_uniform", rows, columns, first_row, stream)
    if _ext.compiled_for(seed.device):
        return torch.ops.pyfast_nas.philox_uniform.default(seed, first_row, rows, columns, stream)
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


def forget_refusals(device: torch.device | str) -> bool:
    """Forget the rows that calls on a GPU have refused, and say whether there were any.

    On a GPU ``gumbel_topk`` looks at its values while the host goes on: a row that it cannot sample
    gets indices of -1, and the next call in this process raises, whoever makes it. Call this before
    something new starts. It waits for the device. Elsewhere a call is refused at once, and there is
    nothing to forget.

    Args:
        device: Where the calls were made.

    Example:
        >>> forget_refusals("cpu")
        False
    """
    device = torch.device(device)
    if device.type != "cuda" or not _ext.compiled_for(device):
        return False
    torch.cuda.synchronize(device)
    return torch.ops.pyfast_nas.forget_refusals.default()


class _GumbelTopK(_library.DirectFunction):
    """(logits, noise, seed, k, tau, conditional) -> (weights, indices, keys).

    The keys are an output with a derivative of their own: what depends on the weights a second
    time goes through plain torch operations on the saved keys, which autograd knows.
    """

    @staticmethod
    def forward(logits, noise, seed, k, tau, conditional):
        try:
            return _library.call_gumbel_topk(logits, k, tau, seed, conditional, True, noise)
        except RuntimeError:
            check_keys(logits, noise, k)
            raise

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        logits, noise, _, _, ctx.tau, ctx.conditional = inputs
        _, indices, keys = output
        ctx.dtypes = logits.dtype, None if noise is None else noise.dtype
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(keys, indices)
        ctx.save_for_forward(keys, indices)

    @staticmethod
    def backward(ctx, grad_weights, _, grad_keys):
        grad = grad_keys
        if grad_weights is not None:
            keys, indices = ctx.saved_tensors
            by_weights = _backward(grad_weights, keys, indices, ctx.tau, ctx.conditional)
            grad = by_weights if grad is None else grad + by_weights
        of_logits, of_noise = (
            grad.to(dtype) if needed and grad is not None else None
            for needed, dtype in zip(ctx.needs_input_grad[:2], ctx.dtypes, strict=True)
        )
        return of_logits, of_noise, None, None, None, None

    @staticmethod
    def jvp(ctx, logits_tangent, noise_tangent, *_):
        keys, indices = ctx.saved_tensors
        tangents = [t.to(keys.dtype) for t in (logits_tangent, noise_tangent) if t is not None]
        tangent = sum(tangents[1:], tangents[0])
        by_tangent = reference.relaxed_weights_tangent(
            tangent, keys, indices, ctx.tau, ctx.conditional
        )
        return by_tangent, None, tangent.clone()

    @staticmethod
    def vmap(info, in_dims, logits, noise, seed, k, tau, conditional):
        batch = info.batch_size
        logits_dim, noise_dim, seed_dim, *_ = in_dims
        logits = _batch_first(logits, logits_dim, batch)
        rows, columns = logits.shape[1:]
        if noise is None:
            # Each slice draws what it would draw alone.
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            if seed_dim is None:
                noise = _noise(seed, rows, columns, dtype)
            else:
                seeds = seed.movedim(seed_dim, 0).unbind()
                noise, noise_dim = torch.stack([_noise(s, rows, columns, dtype) for s in seeds]), 0
        noise = _batch_first(noise, noise_dim, batch).reshape(-1, columns)
        any_seed = seed if seed_dim is None else torch.zeros_like(seed.select(seed_dim, 0))
        outputs = _GumbelTopK.apply(
            logits.reshape(-1, columns), noise, any_seed, k, tau, conditional
        )
        return tuple(y.reshape(batch, rows, -1) for y in outputs), (0, 0, 0)


def _is_untracked(logits: Tensor, noise: Tensor | None) -> bool:
    """Say whether nobody differentiates, batches, traces or intercepts this call."""
    if torch.is_grad_enabled() and (
        logits.requires_grad or (noise is not None and noise.requires_grad)
    ):
        return False
    return not (
        torch.compiler.is_dynamo_compiling()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    )


def _refuse(logits, k, tau, seed, relaxation, noise) -> None:
    """Raise what the validator has to say about a call that the kernel refused, if anything."""
    check_gumbel_topk(logits, k, tau, seed, relaxation, noise)
    check_keys(logits, noise, k)


def _sample_by_reference(logits, noise, seed, k, tau, conditional) -> tuple[Tensor, Tensor, Tensor]:
    weights, indices, keys = reference.gumbel_topk(logits, k, tau, seed, conditional, True, noise)
    if _values_are_readable(keys) and not bool(has_usable_keys(keys, k)):
        check_keys(logits, noise, k)
    return weights, indices, keys


def _sample_opaquely(
    logits, noise, seed, k, tau, conditional, *, keep_keys
) -> tuple[Tensor, Tensor, Tensor]:
    """Leave one opaque operator in a compiled graph; the compiler could not make it quicker."""
    needs_grad = torch.is_grad_enabled() and (
        logits.requires_grad or (noise is not None and noise.requires_grad)
    )
    return torch.ops.pyfast_nas.gumbel_topk.default(
        logits, k, tau, seed, conditional, keep_keys or needs_grad, noise
    )


def _backward(grad_weights, keys, indices, tau, conditional) -> Tensor:
    """Gradient with respect to the keys: by the kernel, unless it is to be differentiated again."""
    if (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
    ):
        return reference.gumbel_topk_backward(grad_weights, keys, indices, tau, conditional)
    return _library.call_gumbel_topk_backward(grad_weights, keys, indices, tau, conditional)


def _noise(seed: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return the noise exactly as the sampler adds it: the keys of zero logits."""
    if not _ext.compiled_for(seed.device):
        u = reference.philox_uniform(seed, 0, rows, columns, 0)
        return reference.gumbel_from_uniform(u.to(dtype))
    zeros = torch.zeros((rows, columns), dtype=dtype, device=seed.device)
    return torch.ops.pyfast_nas.gumbel_topk.default(zeros, 1, 1.0, seed, False, True, None)[2]


def _batch_first(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    return tensor.expand(batch, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _values_are_readable(tensor: Tensor) -> bool:
    """Say whether values may decide what happens next: not while tracing, batching or capturing."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if isinstance(tensor, FakeTensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
