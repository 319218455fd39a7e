"""One validator per operator, called by the public function and the fake kernel alike.

C++ can raise nothing but ``RuntimeError`` through the stable ABI, so every refusal a caller may
want to catch by class is made here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "FLOATING",
    "HALVES",
    "check_mixed_sum",
    "check_tensor",
    "describe",
    "fits_mixed_sum",
    "refuse_mixed_sum",
    "widest_under_autocast",
]

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)
_ACCEPTED = "float64, float32, bfloat16 or float16"


def describe(value: object) -> str:
    """Return ``value`` as an error message shows it: a type for non-tensors, cut at 200 letters."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return type(value).__name__[:200]


def check_mixed_sum(xs: Sequence[Tensor], weights: Tensor) -> None:
    """Refuse what ``mixed_sum`` cannot serve, naming the argument and what was given."""
    if not fits_mixed_sum(xs, weights):
        refuse_mixed_sum("mixed_sum", xs, weights)


def fits_mixed_sum(xs: Sequence[Tensor], weights: Tensor) -> bool:
    """Say quickly that all is well: a small edge takes less time than a careful look at it."""
    if type(xs) not in (list, tuple) or not xs or not isinstance(weights, Tensor):
        return False
    first = xs[0]
    if not isinstance(first, Tensor) or first.is_nested or weights.is_nested:
        return False
    shape, dtype, device, strided = first.shape, first.dtype, first.device, torch.strided
    for x in xs:
        if not (
            isinstance(x, Tensor)
            and x.dtype is dtype
            and x.layout is strided
            and not x.is_nested
            and x.device == device
            and x.shape == shape
        ):
            return False
    return (
        dtype in FLOATING
        and (weights.dtype is dtype or (weights.dtype is torch.float32 and dtype in HALVES))
        and weights.layout is strided
        and weights.device == device
        and weights.shape == (len(xs),)
        and device.type != "meta"
    )


def refuse_mixed_sum(op: str, xs: Sequence[Tensor], weights: Tensor) -> None:
    """Raise what fits candidates and weights that ``fits_mixed_sum`` has turned down."""
    if not isinstance(xs, list | tuple):
        raise TypeError(f"{op}: xs must be a list or tuple of tensors, got {describe(xs)}")
    if not isinstance(weights, Tensor):
        raise TypeError(f"{op}: weights must be a tensor, got {describe(weights)}")
    if not xs:
        raise ValueError(f"{op}: xs must hold at least one candidate, got 0")
    first = xs[0]
    for index, x in enumerate(xs):
        check_tensor(op, f"xs[{index}]", x)
        if x is first:
            continue
        if x.device != first.device:
            raise RuntimeError(
                f"{op}: xs[{index}] must be on {first.device} like xs[0], got {x.device}"
            )
        if x.dtype is not first.dtype:
            raise TypeError(
                f"{op}: xs[{index}] must have dtype {first.dtype} like xs[0], got {x.dtype} "
                "(under torch.autocast floating candidates are brought to the widest of them)"
            )
        if x.shape != first.shape:
            raise ValueError(
                f"{op}: xs[{index}] must have shape {list(first.shape)} like xs[0], "
                f"got {list(x.shape)}"
            )
    check_tensor(op, "weights", weights)
    if weights.device != first.device:
        raise RuntimeError(
            f"{op}: weights must be on {first.device} like xs[0], got {weights.device}"
        )
    if weights.dim() != 1:
        raise ValueError(
            f"{op}: weights must have shape [{len(xs)}], one number per candidate, "
            f"got {list(weights.shape)}"
        )
    if weights.shape[0] != len(xs):
        raise ValueError(
            f"{op}: weights must hold one number for each of the {len(xs)} candidates, "
            f"got {weights.shape[0]}"
        )
    if weights.dtype is not first.dtype and (
        weights.dtype is not torch.float32 or first.dtype not in HALVES
    ):
        raise TypeError(
            f"{op}: weights must have dtype {first.dtype} like xs[0], or torch.float32 with "
            f"bfloat16 or float16 candidates, got {weights.dtype}"
        )


def check_tensor(op: str, name: str, value: object) -> None:
    """Refuse what is not a dense tensor of a served floating type with real memory behind it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {describe(value)}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must have dtype {_ACCEPTED}, got {value.dtype}")
    is_meta = value.device.type == "meta"
    if value.layout is not torch.strided or value.is_nested or is_meta:
        layout = "nested" if value.is_nested else "meta" if is_meta else value.layout
        raise NotImplementedError(
            f"{op}: {name} must be a dense strided tensor, got layout {layout}"
        )


def widest_under_autocast(xs: Sequence[Tensor], weights: Tensor) -> Sequence[Tensor]:
    """Bring floating candidates of different dtypes to the widest of them, under autocast only."""
    kind = weights.device.type if isinstance(weights, Tensor) else "meta"
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return xs
    dtypes = {x.dtype for x in xs if isinstance(x, Tensor)}
    if len(dtypes) < 2 or not dtypes <= set(FLOATING):
        return xs
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return [x.to(dtype) if isinstance(x, Tensor) else x for x in xs]
