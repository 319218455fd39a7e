"""Lists whose tensors lie side by side in one buffer: what operators pass over in one go."""

import weakref
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from pyfast_nas.ops._list_checks import check_lists

__all__ = ["FlatList", "flat_like"]

_ALIGNMENT = 16  # bytes: what a vector access of a GPU, and cuDNN, asks of an address
# Alive as long as a list has them.
_layouts: weakref.WeakValueDictionary[tuple[int, ...], Tensor] = weakref.WeakValueDictionary()


class FlatList(tuple):
    """A tuple of tensors that are views of one buffer, as ``flat_like`` makes it.

    The tensors are ordinary ones, each aligned to 16 bytes. ``ops.tensor_list`` takes the buffer in
    place of the list, which spares it looking at every tensor. So the memory of the tensors must
    stay where it is: one that is given other memory (``x.data = ...``) is not noticed unless it is
    the first or the last.
    """

    _buffer: Tensor
    _layout: Tensor  # for each tensor: offset, rank, sizes, strides
    _ends: tuple[int, ...]

    @classmethod
    def _of(cls, buffer: Tensor, layout: Tensor, views: Sequence[Tensor]) -> Self:
        flat = cls(views)
        flat._buffer, flat._layout = buffer, layout
        flat._ends = flat._addresses()
        return flat

    @property
    def buffer(self) -> Tensor:
        """The buffer, with zeros between tensors where that aligns them."""
        return self._buffer

    def _addresses(self) -> tuple[int, ...]:
        return self._buffer.data_ptr(), self[0].data_ptr(), self[-1].data_ptr()

    def _is_whole(self) -> bool:
        """Say whether the tensors are, by all appearances, still views of the buffer."""
        return self._ends == self._addresses()

    def __reduce__(self):
        """A copy is a plain tuple: its tensors have memory of their own."""
        return tuple, (tuple(self),)


def flat_like(tensors: Sequence[Tensor]) -> FlatList:
    """Return a list of zeros like ``tensors`` whose tensors lie side by side in one buffer.

    For the vectors of an algorithm over the parameters of a network: operators of
    ``ops.tensor_list`` pass over such lists as over a single tensor.

    Args:
        tensors: Tensors of one dtype on one device.

    Returns:
        Tensors of the same shapes, laid out as ``torch.empty_like`` would.

    Raises:
        ValueError: If there is no tensor.
        TypeError: If something is not a tensor, or of a dtype that is not served.
        RuntimeError: If the tensors are on different devices.
        NotImplementedError: If a tensor is sparse, nested or without memory.

    Example:
        >>> flat = flat_like([torch.ones(3), torch.ones(2, 2)])
        >>> flat[1]
        tensor([[0., 0.],
                [0., 0.]])
        >>> flat.buffer.shape
        torch.Size([8])
    """
    check_lists("flat_like", ("tensors",), (tensors,))
    first = tensors[0]
    step = _ALIGNMENT // first.dtype.itemsize
    numbers: list[int] = []
    places: list[tuple[torch.Size, tuple[int, ...], int]] = []
    end = 0
    for x in tensors:
        strides = torch.empty_like(x, device="meta").stride()
        places.append((x.shape, strides, end))
        numbers += [end, x.dim(), *x.shape, *strides]
        end += -(-x.numel() // step) * step
    with torch.no_grad():
        buffer = first.new_zeros(end)
        views = [buffer.as_strided(*place) for place in places]
    return FlatList._of(buffer, _layout_of(tuple(numbers)), views)


def _layout_of(numbers: tuple[int, ...]) -> Tensor:
    """Return the same tensor for the same layout, so that one look tells lists of one layout."""
    layout = _layouts.get(numbers)
    if layout is None:
        layout = _layouts[numbers] = torch.tensor(numbers, dtype=torch.int64)
    return layout
