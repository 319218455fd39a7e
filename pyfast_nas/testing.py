"""What tests of operators share: tolerances, error bounds, devices, dtypes, layouts, NaN poison.

Public, so that operators written elsewhere can be held to the same rules.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

__all__ = [
    "DTYPES",
    "LAYOUTS",
    "TOLERANCE",
    "UNIT_ROUNDOFF",
    "accumulation_dtype",
    "arrange",
    "assert_bound",
    "devices",
    "full_float32",
    "nan_poison",
    "relative_error",
]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Half a unit in the last place of 1: what one rounding to nearest may cost, relative.
UNIT_ROUNDOFF: Mapping[torch.dtype, float] = MappingProxyType(
    {
        torch.float64: 2.0**-53,
        torch.float32: 2.0**-24,
        torch.float16: 2.0**-11,
        torch.bfloat16: 2.0**-8,
    }
)

# Root-mean-square error relative to the root mean square of the truth. Each leaves about an order
# of magnitude above one rounding: results are sums of some tens of terms that partly cancel.
TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {
        torch.float64: 1e-12,
        torch.float32: 1e-5,
        torch.float16: 2e-3,
        torch.bfloat16: 1e-2,
    }
)

# Ways in which the same values lie in memory.
LAYOUTS = (
    "contiguous",
    "transposed",
    "strided",
    "expanded",
    "channels_last",
    "offset_1",
    "offset_3",
)


def devices() -> tuple[str, ...]:
    """Return the devices that tests can run on here."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums over values of ``dtype`` are accumulated in."""
    return torch.promote_types(dtype, torch.float32)


def relative_error(got: Tensor, want: Tensor) -> float:
    """Return the root-mean-square error of ``got`` relative to that of ``want``.

    Example:
        >>> round(relative_error(torch.tensor([1.1, 1.0]), torch.tensor([1.0, 1.0])), 4)
        0.0707
    """
    if got.shape != want.shape:
        raise ValueError(
            f"relative_error: got must have shape {list(want.shape)} like want, "
            f"got {list(got.shape)}"
        )
    if want.numel() == 0:
        return 0.0
    difference = (got.double() - want.double()).square().mean().sqrt()
    return float(difference / want.double().square().mean().sqrt().clamp_min(1e-300))


def assert_bound(got: Tensor, plain: Tensor, truth: Tensor, scale: Tensor, terms: int) -> None:
    """Assert that a kernel is at most twice as wrong as plain PyTorch, plus its own roundings.

    ``err(got) <= 2 err(plain) + (u + terms * u_acc) * max(scale)`` with ``err(y)`` the largest
    distance to ``truth``, ``u`` the unit roundoff of the result and ``u_acc`` that of the
    accumulation.

    Args:
        got: The kernel's result.
        plain: The same by plain PyTorch in the same dtype.
        truth: The same in float64.
        scale: Sum of the absolute values of the terms, in float64.
        terms: Terms added one after the other.
    """
    if truth.numel() == 0:
        assert got.shape == truth.shape
        return
    error = float((got.double() - truth).abs().amax())
    plain_error = float((plain.double() - truth).abs().amax())
    unit = UNIT_ROUNDOFF[got.dtype] + terms * UNIT_ROUNDOFF[accumulation_dtype(got.dtype)]
    bound = 2.0 * plain_error + unit * float(scale.amax())
    assert error <= bound, f"error {error:.3e} exceeds the bound {bound:.3e}"


def arrange(values: Tensor, layout: str) -> Tensor:
    """Return a tensor equal to ``values`` that lies in memory as ``layout`` of ``LAYOUTS`` says.

    A layout that the rank does not allow gives the contiguous one. For ``expanded`` the values
    along the first dimension are those of its first index.

    Example:
        >>> arrange(torch.arange(4.0), "strided").stride()
        (2,)
    """
    shape, rank = values.shape, values.dim()
    if layout == "transposed" and rank >= 2:
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "strided" and rank >= 1:
        wide = values.new_zeros((*shape[:-1], 2 * shape[-1]))
        wide[..., ::2] = values
        return wide[..., ::2]
    if layout == "expanded" and rank >= 1 and shape[0] > 0:
        return values[:1].clone().expand(shape)
    if layout == "channels_last" and rank == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout.startswith("offset_"):
        skip = int(layout.removeprefix("offset_"))
        flat = values.new_zeros(values.numel() + skip)
        flat[skip:] = values.reshape(-1)
        return flat[skip:].view(shape)
    return values.contiguous().clone()


@contextlib.contextmanager
def nan_poison() -> Iterator[None]:
    """Fill every fresh allocation with NaN inside the block, those of compiled kernels included.

    An element that a kernel leaves unwritten then shows in the result.

    Example:
        >>> with nan_poison():
        ...     bool(torch.empty(2).isnan().all())
        True
    """
    before = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filling
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Let no convolution or product of a GPU round float32 to fewer bits inside the block.

    Example:
        >>> with full_float32():
        ...     torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        (False, False)
    """
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        with warnings.catch_warnings():
            # The older switches are the ones that every torch from 2.10 on has.
            warnings.simplefilter("ignore")
            for switch in switches:
                switch.allow_tf32 = False
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch.allow_tf32 = was
