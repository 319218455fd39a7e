"""A concatenation of nodes whose parts are written where they end up, so that nothing is copied."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyfast_nas.ops import _library

__all__ = ["Concatenation"]


class Concatenation:
    """Tensors side by side along their channels, each written to its own place.

    Args:
        parts: How many there are.

    Example:
        >>> side_by_side = Concatenation(2)
        >>> first = side_by_side.place(0, (1, 3, 4, 4), torch.zeros(1)).fill_(1.0)
        >>> side_by_side.join([first, torch.ones(1, 3, 4, 4)]).shape
        torch.Size([1, 6, 4, 4])
    """

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._whole: Tensor | None = None
        self._places: dict[int, Tensor] = {}

    def place(self, part: int, size: Sequence[int], like: Tensor) -> Tensor | None:
        """Return memory for a part, or None where it does not fit beside the others.

        Args:
            part: Its number, from 0.
            size: Its shape ``[N, C, H, W]``, of all parts the same.
            like: A tensor of the dtype and on the device of the part.
        """
        samples, channels, *sides = size
        if self._whole is None:
            self._whole = torch.empty(
                (samples, self._parts * channels, *sides),
                dtype=like.dtype,
                device=like.device,
                memory_format=torch.channels_last,
            )
        if self._whole.shape != (samples, self._parts * channels, *sides):
            return None
        # No view for autograd: parts are results of their own, and nothing writes to them again.
        with torch._C._AutoDispatchBelowAutograd():
            place = self._whole.narrow(1, part * channels, channels)
        self._places[part] = place
        return place

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the concatenation: what the parts were written to, or a copy if one was not.

        A later change of the result in place is a change of the parts: if a gradient is needed,
        backward refuses it.
        """
        if not all(_lies_in(part, self._places.get(i)) for i, part in enumerate(parts)):
            return torch.cat(list(parts), dim=1)
        whole, self._whole, self._places = self._whole, None, {}
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            return _Join.apply([whole], *parts)
        return whole


def _lies_in(part: Tensor, place: Tensor | None) -> bool:
    return (
        place is not None
        and type(part) is Tensor
        and part.shape == place.shape
        and part.stride() == place.stride()
        and part.data_ptr() == place.data_ptr()
    )


class _Join(_library.DirectFunction):
    """([whole], *parts of it) -> whole."""

    @staticmethod
    def forward(whole: list[Tensor], *parts: Tensor):
        return whole[0]

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.parts = len(inputs) - 1
        # For its version alone: it tells whether somebody has changed the parts since.
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        _ = ctx.saved_tensors
        return None, *grad.chunk(ctx.parts, dim=1)
