"""The validator of the operators on lists of tensors.

Where kernels serve they look at each tensor anyway: these checks then only find words for what the
kernels have refused, and a thousand tensors cost no second look.
"""

import math
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyfast_nas.ops._checks import FLOATING, check_tensor, describe

__all__ = ["Scalar", "check_lists", "refuse_gradients", "scalar_of"]


class Scalar(NamedTuple):
    """A number, times a tensor with one number where there is one."""

    number: float
    tensor: Tensor | None

    def value(self) -> float | Tensor:
        """Return both as one, for plain operations."""
        return self.number if self.tensor is None else self.number * self.tensor


def scalar_of(
    op: str, name: str, value: float | Tensor, beside: Sequence[Tensor], times: float = 1.0
) -> Scalar:
    """Return ``times * value``; refuse what is no number and no 0-dim tensor ``beside`` a list."""
    if isinstance(value, numbers.Real):
        return Scalar(times * float(value), None)
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a number or a 0-dim tensor, got {describe(value)}")
    if value.dim() != 0:
        raise ValueError(f"{op}: {name} must be a number or a 0-dim tensor, got {describe(value)}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be of a floating dtype, got {value.dtype}")
    first = beside[0] if isinstance(beside, list | tuple) and beside else None
    if isinstance(first, Tensor) and value.device != first.device:
        raise RuntimeError(
            f"{op}: {name} must be on {first.device} like the lists, got {value.device}"
        )
    value = value.detach()
    return Scalar(times, value if value.dtype.itemsize >= 4 else value.float())


def refuse_gradients(op: str, name: str, tensors: Sequence[Tensor]) -> None:
    """Refuse to write to what autograd watches."""
    for index, x in enumerate(tensors if isinstance(tensors, list | tuple) else ()):
        if isinstance(x, Tensor) and x.requires_grad:
            raise RuntimeError(
                f"{op}: {name}[{index}] must not require a gradient while gradients are recorded "
                "(write to it under torch.no_grad())"
            )


def check_lists(
    op: str, names: Sequence[str], lists: Sequence[Sequence[Tensor]], written: int = 0
) -> None:
    """Refuse lists that do not fit each other, naming the argument and what was given.

    Args:
        op: Name of the operator.
        names: Name of each list.
        lists: The lists.
        written: How many of them, from the first on, are written to.
    """
    for name, tensors in zip(names, lists, strict=True):
        if not isinstance(tensors, list | tuple):
            raise TypeError(
                f"{op}: {name} must be a list or tuple of tensors, got {describe(tensors)}"
            )
        if not tensors:
            raise ValueError(f"{op}: {name} must hold at least one tensor, got 0")
        if len(tensors) != len(lists[0]):
            raise ValueError(
                f"{op}: {name} must hold {len(lists[0])} tensors like {names[0]}, "
                f"got {len(tensors)}"
            )
        for index, x in enumerate(tensors):
            check_tensor(op, f"{name}[{index}]", x)
            _check_like(op, f"{name}[{index}]", x, lists[0][0], f"{names[0]}[0]")
            if x.shape != lists[0][index].shape:
                raise ValueError(
                    f"{op}: {name}[{index}] must have shape {list(lists[0][index].shape)} like "
                    f"{names[0]}[{index}], got {list(x.shape)}"
                )
    if written and not torch.compiler.is_compiling():
        _refuse_overlaps(op, names, lists, written)


def _check_like(op: str, name: str, x: Tensor, first: Tensor, first_name: str) -> None:
    if x.device != first.device:
        raise RuntimeError(f"{op}: {name} must be on {first.device} like {first_name}, "
                           f"got {x.device}")  # fmt: skip
    if x.dtype is not first.dtype:
        raise TypeError(f"{op}: {name} must have dtype {first.dtype} like {first_name}, "
                        f"got {x.dtype}")  # fmt: skip


def _refuse_overlaps(op: str, names: Sequence[str], lists: Sequence, written: int) -> None:
    """Refuse a place in memory that is written and is anything else's as well.

    Dense tensors are compared by the memory they cover, those with gaps that are written by where
    they begin. The same place of a list that is read may be the tensor that is written.
    """
    spans = []
    for place, tensors in enumerate(lists):
        for index, x in enumerate(tensors):
            name, is_written = f"{names[place]}[{index}]", place < written
            if is_written and any(s == 0 < n - 1 for s, n in zip(x.stride(), x.shape, strict=True)):
                raise ValueError(f"{op}: {name} must not hold one element at two places")
            is_dense = _is_dense(x)
            if x.numel() and (is_written or is_dense):
                begin = x.data_ptr()
                end = begin + (x.nbytes if is_dense else x.element_size())
                spans.append((begin, end, index, is_written, name))
    # Spans that reach into each other: one of them may be written if all are the same place.
    together: list[tuple] = []
    for span in sorted(spans):
        if together and span[0] >= max(other[1] for other in together):
            together.clear()
        together.append(span)
        writers = [other for other in together if other[3]]
        if writers and (len(writers) > 1 or any(span[:3] != other[:3] for other in together)):
            one = writers[0] if writers[0] is not span else together[-2]
            raise ValueError(f"{op}: {span[4]} must not share memory with {one[4]}")


def _is_dense(x: Tensor) -> bool:
    order = sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1)
    return all(
        stride == math.prod(n for _, n in order[:place]) for place, (stride, _) in enumerate(order)
    )
