"""The inner product of two tensors, summed in a fixed order and differentiable to any order."""

import torch
from torch import Tensor

from pyfast_nas import _ext
from pyfast_nas.ops._checks import FLOATING
from pyfast_nas.ops.mixed_sum import _scatter_and_dots

__all__ = ["inner_product"]


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    r"""Return :math:`\langle a, b\rangle` over all elements, accumulated in float32 at least.

    Where compiled kernels serve, it is the gradient of a mixing weight of `mixed_sum`: partial
    sums belong to blocks of elements, not to threads, so the number of threads changes no bit.

    Args:
        a: Any floating tensor.
        b: Another of its shape.

    Returns:
        The inner product, float64 if either tensor is, else float32: the product of 16-bit numbers
        would soon overflow.

    Shape:
        a and b of one shape ``[...]`` -> ``[]``.

    Example:
        >>> inner_product(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        tensor(11.)
    """
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    served = a.dtype in FLOATING and b.dtype in FLOATING and not torch.compiler.is_compiling()
    if not (served and _ext.compiled_for(a.device)):
        return (a.to(wide) * b.to(wide)).sum()
    # The kernel itself widens 16-bit candidates of a float32 gradient.
    x = b if wide is torch.float32 else b.to(wide)
    _, dots = _scatter_and_dots(a.to(wide), a.new_ones(1, dtype=wide), [x], wants_weights=True)
    return dots[0]
