"""Validators of the sampling operators, called by the public functions and the fake kernels alike.

What needs the values of a tensor is refused where they can be read: at once on the CPU, never
under fake tensors.
"""

import math
import numbers

import torch
from torch import Tensor

from pyfast_nas.ops._checks import FLOATING, describe

__all__ = [
    "MAX_CANDIDATES",
    "RELAXATIONS",
    "check_block",
    "check_gumbel_topk",
    "check_keys",
    "check_seed",
    "has_usable_keys",
]

RELAXATIONS = ("shared", "conditional", "subset")
MAX_CANDIDATES = 65536  # kMaxCandidates of csrc/math/limits.h
_MAX_ROWS = 2**32  # a row number is one 32-bit word of the counter
_MAX_BLOCK_COLUMNS = 2**26  # four columns to each of the 2^24 counters beside the stream
_MAX_STREAMS = 256
_ACCEPTED = "float64, float32, bfloat16 or float16"


def check_gumbel_topk(
    logits: Tensor, k: int, tau: float, seed: Tensor, relaxation: str, noise: Tensor | None
) -> None:
    """Refuse what ``gumbel_topk`` cannot serve, as far as it shows without reading values."""
    where = "gumbel_topk"
    _check_dense(where, "logits", logits)
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(
            f"{where}: logits must have shape [num_edges, num_ops] with at least one candidate "
            f"a row, got {list(logits.shape)}"
        )
    rows, columns = logits.shape
    if columns > MAX_CANDIDATES:
        raise ValueError(f"{where}: num_ops must be at most {MAX_CANDIDATES}, got {columns}")
    if rows >= _MAX_ROWS:
        raise ValueError(f"{where}: num_edges must be below 2^32, got {rows}")
    _check_integer(where, "k", k)
    if not 1 <= k <= columns:
        raise ValueError(f"{where}: k must be between 1 and num_ops={columns}, got {k}")
    if isinstance(tau, bool) or not isinstance(tau, numbers.Real | torch.SymFloat):
        raise TypeError(
            f"{where}: tau (the temperature) must be a plain number, got {describe(tau)}"
        )
    if not (isinstance(tau, torch.SymFloat) or (tau > 0 and math.isfinite(tau))):
        raise ValueError(
            f"{where}: tau (the temperature) must be positive and finite, got {float(tau)}"
        )
    if relaxation not in RELAXATIONS:
        raise ValueError(
            f"{where}: relaxation must be 'shared', 'conditional' or 'subset', "
            f"got {repr(relaxation)[:200]}"
        )
    check_seed(where, seed)
    if seed.device != logits.device:
        raise RuntimeError(
            f"{where}: seed must be on {logits.device} like logits, got {seed.device}"
        )
    if noise is None:
        return
    _check_dense(where, "noise", noise)
    if noise.shape != logits.shape:
        raise ValueError(
            f"{where}: noise must have shape {list(logits.shape)} like logits, "
            f"got {list(noise.shape)}"
        )
    if noise.device != logits.device:
        raise RuntimeError(
            f"{where}: noise must be on {logits.device} like logits, got {noise.device}"
        )


def check_block(where: str, rows: int, columns: int, first_row: int = 0, stream: int = 0) -> None:
    """Refuse a block of random numbers that the counter, or the sampler, cannot name."""
    bounds = {
        "rows": (rows, _MAX_ROWS),
        "columns": (columns, MAX_CANDIDATES if where == "gumbel_noise" else _MAX_BLOCK_COLUMNS),
        "stream": (stream, _MAX_STREAMS - 1),
        "first_row": (first_row, _MAX_ROWS),
    }
    for name, (value, most) in bounds.items():
        _check_integer(where, name, value)
        least = 1 if name == "columns" and where == "gumbel_noise" else 0
        if not least <= value <= most:
            raise ValueError(f"{where}: {name} must be between {least} and {most}, got {value}")
    if first_row + rows > _MAX_ROWS:
        raise ValueError(
            f"{where}: first_row + rows must be at most {_MAX_ROWS}, got {first_row + rows}"
        )


def check_seed(where: str, seed: Tensor) -> None:
    """Refuse a seed that is not one (seed, offset) pair."""
    if not isinstance(seed, Tensor):
        raise TypeError(f"{where}: seed must be an int64 tensor [2], got {describe(seed)}")
    if seed.dtype is not torch.int64:
        raise TypeError(f"{where}: seed must have dtype torch.int64, got {seed.dtype}")
    _check_layout(where, "seed", seed)
    if seed.shape != (2,):
        raise ValueError(
            f"{where}: seed must have shape [2], a seed and an offset, got {list(seed.shape)}"
        )


def has_usable_keys(keys: Tensor, k: int) -> Tensor:
    """Say, as a 0-dim bool tensor, whether every row has k unmasked keys and none NaN or +inf."""
    return ((keys < torch.inf).all(1) & ((keys > -torch.inf).sum(1) >= k)).all()


def check_keys(logits: Tensor, noise: Tensor | None, k: int) -> None:
    """Refuse logits and noise whose values cannot be sampled from, naming the first such row."""
    _check_values("logits", logits)
    if noise is not None:
        _check_values("noise", noise)
        logits = logits + noise
        _check_values("logits + noise", logits)
    unmasked = (logits > -torch.inf).sum(1)
    if bool((unmasked < k).any()):
        row = int((unmasked < k).nonzero()[0, 0])
        raise ValueError(
            f"gumbel_topk: logits must leave at least k={k} candidates of each row unmasked "
            f"(above -inf), got {int(unmasked[row])} in row {row}"
        )


def _check_values(name: str, value: Tensor) -> None:
    for kind, bad in (("NaN", value.isnan()), ("+inf", value == torch.inf)):
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(
                f"gumbel_topk: {name} must hold no {kind}, got one in row {row}, column {column}"
            )


def _check_integer(where: str, name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{where}: {name} must be an integer, got {describe(value)}")


def _check_dense(where: str, name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: {name} must be a tensor, got {describe(value)}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{where}: {name} must have dtype {_ACCEPTED}, got {value.dtype}")
    _check_layout(where, name, value)


def _check_layout(where: str, name: str, value: Tensor) -> None:
    # Shape inference on the meta device is for fake tensors only, whose type says so.
    is_meta = value.device.type == "meta"
    if value.layout is not torch.strided or value.is_nested or is_meta:
        layout = "nested" if value.is_nested else "meta" if is_meta else value.layout
        raise NotImplementedError(
            f"{where}: {name} must be a dense strided tensor, got layout {layout}"
        )
