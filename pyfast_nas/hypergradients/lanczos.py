"""The largest eigenvalues of a symmetric operator that is known by its products alone."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

__all__ = ["Eigenvalues", "Product", "lanczos"]

Product = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclasses.dataclass(frozen=True)
class Eigenvalues:
    """What the iteration found.

    Attributes:
        values: Largest first, by algebraic value; float64 ``[count]``, or fewer where the space
            that the start lies in has no more dimensions.
        residuals: For each a bound of its distance to an eigenvalue of the operator.
        products: Products that were made.
    """

    values: Tensor
    residuals: Tensor
    products: int


def lanczos(
    product: Product,
    like: Sequence[Tensor],
    *,
    steps: int = 20,
    count: int = 1,
    tolerance: float = 1e-10,
    generator: Generator | None = None,
) -> Eigenvalues:
    r"""Return the largest eigenvalues of a symmetric operator, by algebraic value.

    The Lanczos recurrence with full re-orthogonalisation, in float64: ``steps`` vectors of the size
    of ``like`` are kept. The largest in magnitude is no substitute: of the spectrum
    :math:`\{-5, 3, 1\}` the answer is 3.

    Args:
        product: Takes one tensor for each of ``like`` and returns the product, likewise.
        like: Tensors whose shapes, dtypes and device the operator's argument has.
        steps: Most products to make.
        count: How many eigenvalues to return.
        tolerance: The iteration ends where the next direction is shorter than this, relative to
            the largest coefficient so far: the space that the start lies in is exhausted.
        generator: Source of the random start, on the device of ``like``; torch's default one if
            ``None``.

    Raises:
        ValueError: If there is nothing to multiply, or ``steps`` or ``count`` is less than 1.

    Example:
        >>> matrix = torch.diag(torch.tensor([-5.0, 3.0, 1.0, 0.5]))
        >>> found = lanczos(lambda u: [matrix @ u[0]], [torch.zeros(4)])
        >>> round(float(found.values), 6), found.products
        (3.0, 4)

    References:
        Lanczos, "An iteration method for the solution of the eigenvalue problem of linear
        differential and integral operators", 1950. Golub & Van Loan, "Matrix Computations", 10.3.
    """
    for name, value in (("steps", steps), ("count", count)):
        if value < 1:
            raise ValueError(f"lanczos: {name} must be at least 1, got {value}")
    size = sum(tensor.numel() for tensor in like)
    if not size:
        raise ValueError("lanczos: like must hold at least one number, got none")
    direction = torch.cat(
        [torch.randn(tensor.shape, dtype=torch.float64, device=tensor.device, generator=generator)
         .flatten() for tensor in like]
    )  # fmt: skip
    basis = direction.new_empty(min(steps, size), size)
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = [direction.norm()]  # the first belongs to no pair
    for place in range(len(basis)):
        basis[place] = direction / off_diagonal[-1]
        image = _flat(product(_split(basis[place], like)))
        diagonal.append(basis[place] @ image)
        # Twice is enough: what the first pass leaves is rounding.
        for _ in range(2):
            image -= basis[: place + 1].t() @ (basis[: place + 1] @ image)
        direction = image
        off_diagonal.append(direction.norm())
        scale = max(abs(float(value)) for value in (*diagonal, *off_diagonal[1:-1]))
        if float(off_diagonal[-1]) <= tolerance * scale:
            break
    rest = torch.stack(off_diagonal[1:])
    matrix = torch.diag(torch.stack(diagonal))
    matrix += torch.diag(rest[:-1], 1) + torch.diag(rest[:-1], -1)
    values, vectors = torch.linalg.eigh(matrix)
    found = values.flip(0)[:count]
    residuals = (rest[-1] * vectors[-1].abs()).flip(0)[:count]
    return Eigenvalues(found, residuals, len(diagonal))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def _split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = vector.split([tensor.numel() for tensor in like])
    return [
        part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, like, strict=True)
    ]
