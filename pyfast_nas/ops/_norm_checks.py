"""The validator of ``norm_mixed_sum``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyfast_nas.ops._checks import HALVES, describe, fits_mixed_sum, refuse_mixed_sum
from pyfast_nas.ops.candidates import Norm

__all__ = ["check_norm_mixed_sum"]

_OP = "norm_mixed_sum"


def check_norm_mixed_sum(
    xs: Sequence[Tensor], weights: Tensor, norms: Sequence[Norm | None]
) -> None:
    """Refuse what ``norm_mixed_sum`` cannot serve, naming the argument and what was given."""
    if not fits_mixed_sum(xs, weights):
        refuse_mixed_sum(_OP, xs, weights)
    first = xs[0]
    if first.dim() < 2:
        raise ValueError(f"{_OP}: xs[0] must have shape [N, C, ...], got {list(first.shape)}")
    if not isinstance(norms, list | tuple):
        raise TypeError(f"{_OP}: norms must be a list or tuple, got {describe(norms)}")
    if len(norms) != len(xs):
        raise ValueError(
            f"{_OP}: norms must hold a Norm or None for each of the {len(xs)} candidates, "
            f"got {len(norms)}"
        )
    for index, norm in enumerate(norms):
        if norm is not None:
            _check_norm(f"norms[{index}]", norm, first)


def _check_norm(where: str, norm: Norm, first: Tensor) -> None:
    if not isinstance(norm, Norm):
        raise TypeError(f"{_OP}: {where} must be a Norm or None, got {describe(norm)}")
    channels = first.shape[1]
    for name in ("gamma", "beta", "mean", "var"):
        value = getattr(norm, name)
        if value is not None:
            _check_vector(f"{where}.{name}", value, channels, first)
    if (norm.gamma is None) != (norm.beta is None) or (norm.mean is None) != (norm.var is None):
        raise ValueError(f"{_OP}: {where} must have both of gamma and beta, and of mean and var")
    if not isinstance(norm.eps, float | int) or isinstance(norm.eps, bool):
        raise TypeError(f"{_OP}: {where}.eps must be a number, got {describe(norm.eps)}")
    values = first.shape[0]
    for size in first.shape[2:]:
        values *= size
    if norm.mean is None and values == 1:
        # torch's own words for the same refusal.
        raise ValueError(
            f"{_OP}: {where}: Expected more than 1 value per channel when training, "
            f"got input size {first.shape}"
        )


def _check_vector(name: str, value: object, channels: int, first: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{_OP}: {name} must be a tensor, got {describe(value)}")
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else value.layout
        raise NotImplementedError(f"{_OP}: {name} must be a dense tensor, got layout {layout}")
    if value.device != first.device:
        raise RuntimeError(f"{_OP}: {name} must be on {first.device} like xs, got {value.device}")
    if value.shape != (channels,):
        raise ValueError(f"{_OP}: {name} must have shape [{channels}], got {list(value.shape)}")
    if value.dtype is not first.dtype and (
        value.dtype is not torch.float32 or first.dtype not in HALVES
    ):
        raise TypeError(
            f"{_OP}: {name} must have dtype {first.dtype} like xs, or torch.float32 with bfloat16 "
            f"or float16 candidates, got {value.dtype}"
        )
