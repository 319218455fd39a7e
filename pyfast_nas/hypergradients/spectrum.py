"""The largest eigenvalue of an operator that is known by its products only."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyfast_nas.hypergradients import vectors

__all__ = ["largest_eigenvalue"]


def largest_eigenvalue(
    product: Callable[[list[Tensor]], list[Tensor]],
    like: Sequence[Tensor],
    *,
    iterations: int = 20,
) -> Tensor:
    """Return the eigenvalue of largest magnitude of a symmetric operator, by power iteration.

    Args:
        product: Applies the operator.
        like: Tensors of the shapes that it takes.
        iterations: Products taken. The start is random, of a fixed seed; no global stream is read.

    Example:
        >>> value = largest_eigenvalue(lambda u: [3.0 * u[0]], [torch.ones(2)])
        >>> round(value.item(), 4)
        3.0
    """
    generator = torch.Generator().manual_seed(0)
    vector = [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in like]
    value = vectors.norm(vector)
    for _ in range(iterations):
        vector = vectors.scaled(vector, vectors.step_size(vector, 1.0))
        image = product(vector)
        value = vectors.dot(vector, image)
        vector = image
    return value
