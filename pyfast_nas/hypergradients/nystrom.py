"""The inverse of a low-rank sketch of the Hessian: Nystrom's method."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast_nas.errors import ConfigError
from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.base import Gradients, Info, estimator, require_count
from pyfast_nas.hypergradients.first_order import outer_gradients
from pyfast_nas.hypergradients.problem import BilevelProblem
from pyfast_nas.hypergradients.products import HessianProducts, Mode

__all__ = ["nystrom"]


@estimator
def nystrom(
    problem: BilevelProblem,
    train: Any,
    valid: Any,
    *,
    rank: int = 10,
    rho: float = 1.0,
    columns: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    hvp: Mode = "exact",
    radius: float = 1e-2,
) -> Gradients:
    r"""Return :math:`\nabla_\alpha L_{valid} - G (H_k + \rho I)^{-1} \nabla_w L_{valid}`.

    :math:`H_k = C M^+ C^\top` is the sketch of :math:`H` by ``rank`` of its columns :math:`C`,
    of which :math:`M` are the rows at the same places. Takes ``rank`` products with :math:`H`, one
    with :math:`G`, and keeps as many vectors.

    Args:
        problem: Losses, weights and architecture parameters.
        train: Batch of the products.
        valid: Validation batch.
        rank: Columns, at most as many as there are weights.
        rho: Added to the diagonal. Outside of the sketched space the inverse is :math:`1/\rho`:
            a small one with few columns is badly biased, so scale it with the spectrum.
        columns: Which columns, instead of ``rank`` drawn ones.
        generator: Where columns are drawn from; torch's default one if ``None``, which one
            permutation moves on.
        hvp: How products are computed, see `HessianProducts`.
        radius: Of finite differences.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (3, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w - a).square().sum(),
        ...     valid_loss=lambda batch: w.sum(),
        ... )
        >>> tuple(nystrom(problem, None, None, rank=1, rho=2.0))
        (tensor([0.5000]),)

    References:
        Hataya & Yamada, "Nyström Method for Accurate and Scalable Implicit Differentiation",
        AISTATS 2023, eq. 7.
    """
    size = sum(weight.numel() for weight in problem.weights)
    if columns is None:
        require_count("nystrom", "rank", rank, 1, at_most=size)
        columns = torch.randperm(size, generator=generator)[:rank].tolist()
    elif not columns or not all(0 <= column < size for column in columns):
        raise ConfigError(
            f"nystrom: columns must lie between 0 and {size - 1}, got {list(columns)!r:.200}"
        )
    if not rho > 0:
        raise ConfigError(f"nystrom: rho must be greater than 0, got {rho!r}")
    products = HessianProducts(problem, train, mode=hvp, radius=radius)
    outer, direct = outer_gradients(problem, valid)
    sketch = vectors.columns(products.ww, problem.weights, columns)  # [weights, rank]
    value = vectors.unflatten(_inverse(sketch, columns, rho, vectors.flatten(outer)), outer)
    implicit = vectors.scaled(products.aw(value), -1.0)
    return Gradients(direct, implicit, Info(products=dict(products.counts)))


def _inverse(sketch: Tensor, columns: Sequence[int], rho: float, vector: Tensor) -> Tensor:
    """Apply the inverse by Woodbury's identity; the small system is solved in double precision."""
    core = sketch[list(columns)].double()
    core = (core + core.mT) / 2 + (sketch.mT @ sketch).double() / rho  # [rank, rank]
    # Columns of weights that the loss does not see are zero, and so are rows of the small system.
    inner = torch.linalg.pinv(core, hermitian=True) @ (sketch.mT @ vector).double()
    return vector / rho - sketch @ inner.to(vector.dtype) / rho**2
