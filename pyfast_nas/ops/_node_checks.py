"""The validator of ``fused_node``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyfast_nas.ops._checks import FLOATING, HALVES
from pyfast_nas.ops.candidates import Candidate, Norm, Stage

__all__ = ["check_fused_node"]

_OP = "fused_node"


def check_fused_node(
    xs: Sequence[Tensor],
    weights: Tensor,
    candidates: Sequence[Candidate],
    strides: Sequence[int],
    selected: Tensor | None = None,
) -> tuple[int, int, int, int]:
    """Refuse what ``fused_node`` cannot serve, naming the argument and what was given.

    Returns:
        The shape of the sum.
    """
    if not xs or len(strides) != len(xs):
        raise ValueError(
            f"{_OP}: xs and strides must be as many, and at least one, "
            f"got {len(xs)} and {len(strides)}"
        )
    if not candidates:
        raise ValueError(f"{_OP}: candidates must hold at least one, got 0")
    first = xs[0]
    if first.dtype not in FLOATING:
        raise TypeError(
            f"{_OP}: xs must have dtype float64, float32, bfloat16 or float16, got {first.dtype}"
        )
    if weights.shape != (len(candidates),):
        raise ValueError(
            f"{_OP}: weights must have shape [{len(candidates)}], one per candidate, "
            f"got {list(weights.shape)}"
        )
    _fits(first, "weights", weights)
    if selected is not None:
        _check_selected(selected, weights)
    out = None
    for edge, (x, stride) in enumerate(zip(xs, strides, strict=True)):
        if x.dim() != 4:
            raise ValueError(f"{_OP}: xs[{edge}] must have shape [N, C, H, W], got {list(x.shape)}")
        if stride not in (1, 2):
            raise ValueError(f"{_OP}: strides[{edge}] must be 1 or 2, got {stride}")
        if x.dtype is not first.dtype:
            raise TypeError(
                f"{_OP}: xs[{edge}] must have dtype {first.dtype} like xs[0], got {x.dtype}"
            )
        _fits(first, f"xs[{edge}]", x)
        size = (x.shape[0], -(-x.shape[2] // stride), -(-x.shape[3] // stride))
        out = out or size
        if size != out:
            raise ValueError(
                f"{_OP}: xs[{edge}] must give {list(out)} samples, rows and columns like xs[0], "
                f"got {list(size)}"
            )
    width = None
    for index, candidate in enumerate(candidates):
        width = _check_candidate(index, candidate, xs, strides, width, out)
    return out[0], width, *out[1:]


def _check_selected(selected: Tensor, weights: Tensor) -> None:
    if selected.shape != weights.shape:
        raise ValueError(
            f"{_OP}: selected must have shape {list(weights.shape)} like weights, "
            f"got {list(selected.shape)}"
        )
    if selected.dtype is not torch.bool:
        raise TypeError(f"{_OP}: selected must have dtype torch.bool, got {selected.dtype}")
    if selected.device != weights.device:
        raise RuntimeError(
            f"{_OP}: selected must be on {weights.device} like weights, got {selected.device}"
        )


def _check_candidate(
    index: int,
    candidate: Candidate,
    xs: Sequence[Tensor],
    strides: Sequence[int],
    width: int | None,
    out: tuple[int, int, int],
) -> int:
    """Check one candidate and return the channels that all must give."""
    where = f"candidates[{index}]"
    if candidate.edge not in range(len(xs)):
        raise ValueError(
            f"{_OP}: {where}.edge must be from 0 to {len(xs) - 1}, got {candidate.edge}"
        )
    channels = xs[candidate.edge].shape[1]
    if candidate.kind == "skip" and strides[candidate.edge] != 1:
        raise ValueError(f"{_OP}: {where} must have stride 1, since it is a skip, got stride 2")
    if candidate.kind == "conv":
        if len(candidate.stages) not in (1, 2):
            raise ValueError(
                f"{_OP}: {where}.stages must be one or two, got {len(candidate.stages)}"
            )
        for stage in candidate.stages:
            if stage.taps is not None:
                size = stage.taps.shape[-1]
                if stage.taps.shape != (channels, 1, size, size) or size % 2 == 0:
                    raise ValueError(
                        f"{_OP}: {where} must have taps [{channels}, 1, k, k] with odd k, "
                        f"got {list(stage.taps.shape)}"
                    )
                _fits(xs[0], f"{where} taps", stage.taps)
            shape = stage.matrix.shape
            size = shape[-1] if len(shape) == 4 and stage.taps is stage.shifted is None else 1
            if shape[1:] != (channels, size, size) or size % 2 == 0:
                raise ValueError(
                    f"{_OP}: {where} must have a matrix [C_out, {channels}, 1, 1], or without taps "
                    f"one of k x k with odd k, got {list(shape)}"
                )
            _fits(xs[0], f"{where} matrix", stage.matrix)
            if stage.shifted is not None:
                _check_shifted(where, stage, xs[candidate.edge], strides[candidate.edge])
            channels = stage.out_channels
            if channels != candidate.stages[-1].out_channels:
                raise ValueError(
                    f"{_OP}: {where} must give as many channels after its first stage as after its "
                    f"last, got {channels} and {candidate.stages[-1].out_channels}"
                )
            _check_norm(where, stage.norm, channels, xs[0], out)
            if stage.bias is not None:
                _check_bias(where, stage, channels, xs[0])
    elif candidate.kind not in ("skip", "max_pool", "avg_pool"):
        raise ValueError(
            f"{_OP}: {where}.kind must be skip, max_pool, avg_pool or conv, "
            f"got {candidate.kind!r:.200}"
        )
    elif candidate.norm is not None:
        _check_norm(where, candidate.norm, channels, xs[0], out)
    if width is not None and width != channels:
        raise ValueError(
            f"{_OP}: {where} must give {width} channels like the others, got {channels}"
        )
    return channels


def _check_shifted(where: str, stage: Stage, x: Tensor, stride: int) -> None:
    """Check the second matrix of a factorised reduction, which reads ``x`` itself."""
    channels = stage.matrix.shape[1]
    if stage.shifted.dim() != 4 or stage.shifted.shape[1:] != (channels, 1, 1):
        raise ValueError(
            f"{_OP}: {where} must have a shifted matrix [C_rest, {channels}, 1, 1], "
            f"got {list(stage.shifted.shape)}"
        )
    if stage.taps is not None or stride != 2 or x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(
            f"{_OP}: {where} must have no taps and halve an image with even sides, since it is a "
            f"factorised reduction, got {x.shape[2]} x {x.shape[3]} at stride {stride}"
        )
    _fits(x, f"{where} shifted", stage.shifted)


def _check_bias(where: str, stage: Stage, channels: int, like: Tensor) -> None:
    if stage.bias.shape != (channels,):
        raise ValueError(
            f"{_OP}: {where} must have a bias of shape [{channels}], got {list(stage.bias.shape)}"
        )
    if stage.norm.mean is not None:
        raise ValueError(
            f"{_OP}: {where} must have no bias where statistics are given, since only in those of "
            f"the batch it cancels out, got one"
        )
    _fits(like, f"{where} bias", stage.bias)


def _check_norm(
    where: str, norm: Norm, channels: int, like: Tensor, out: tuple[int, int, int]
) -> None:
    for name in ("gamma", "beta", "mean", "var"):
        value = getattr(norm, name)
        if value is not None and value.shape != (channels,):
            raise ValueError(
                f"{_OP}: {where} must have a {name} of shape [{channels}], got {list(value.shape)}"
            )
        if value is not None:
            _fits(like, f"{where} {name}", value)
    if (norm.gamma is None) != (norm.beta is None) or (norm.mean is None) != (norm.var is None):
        raise ValueError(f"{_OP}: {where} must have both of gamma and beta, and of mean and var")
    if norm.mean is None and out[0] * out[1] * out[2] == 1:
        # torch's own words for the same refusal.
        raise ValueError(
            f"{_OP}: {where} must have more than one value per channel when training, got 1"
        )


def _fits(first: Tensor, name: str, tensor: Tensor) -> None:
    """Check a tensor's device, and its dtype: that of the inputs, or float32 with 16-bit ones."""
    if tensor.dtype is not first.dtype and (
        tensor.dtype is not torch.float32 or first.dtype not in HALVES
    ):
        wide = ", or torch.float32" if first.dtype in HALVES else ""
        raise TypeError(
            f"{_OP}: {name} must have dtype {first.dtype} like xs[0]{wide}, got {tensor.dtype}"
        )
    if tensor.device != first.device:
        raise RuntimeError(
            f"{_OP}: {name} must be on {first.device} like xs[0], got {tensor.device}"
        )
