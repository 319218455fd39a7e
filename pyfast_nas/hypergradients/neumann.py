"""The inverse Hessian as a truncated Neumann series: the hypergradient of iDARTS."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast_nas.errors import ConfigError, DivergenceError
from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.base import Gradients, Info, estimator, require_count
from pyfast_nas.hypergradients.first_order import outer_gradients
from pyfast_nas.hypergradients.problem import BilevelProblem
from pyfast_nas.hypergradients.products import HessianProducts, Mode
from pyfast_nas.hypergradients.spectrum import largest_eigenvalue

__all__ = ["neumann"]


@estimator
def neumann(
    problem: BilevelProblem,
    train: Any,
    valid: Any,
    *,
    order: int = 2,
    gamma: float | Tensor | None = None,
    damping: float = 0.0,
    hvp: Mode = "exact",
    radius: float = 1e-2,
    check_gamma: bool = False,
    max_growth: float | None = 10.0,
) -> Gradients:
    r"""Return the implicit hypergradient, the inverse Hessian as ``order`` + 1 terms of a series.

    .. math:: \nabla_\alpha L_{valid} - \gamma\, G \sum_{j=0}^{K} (I - \gamma H)^j v, \qquad
        v = \nabla_w L_{valid},

    all at the weights as they are, which are taken for those that minimise the training loss. Takes
    :math:`K` products with :math:`H` and one with :math:`G`.

    Args:
        problem: Losses, weights and architecture parameters.
        train: Batch of the products; in iDARTS a fresh one, none of those that the weights just
            stepped on.
        valid: Validation batch.
        order: :math:`K`, the index of the last term.
        gamma: Step size, less than 2 over the largest eigenvalue; the weights' current learning
            rate if ``None``.
        damping: Added to the diagonal of :math:`H`. With weight decay in the optimizer the inner
            problem has it there.
        hvp: How products are computed, see `HessianProducts`.
        radius: Of finite differences.
        check_gamma: Whether to estimate the largest eigenvalue first, by 20 products.
        max_growth: How many times its first length a term may reach: the terms grow where the
            loss bends down more than the damping. ``None`` does not look, and then nothing is
            read on the host.

    Returns:
        Gradients whose ``info.residual`` is the length of the last term over that of the first:
        what the series without its last term leaves of the linear system.

    Raises:
        ConfigError: If an option is out of range, or ``check_gamma`` finds that the series
            diverges.
        DivergenceError: If a term grows by more than ``max_growth``.

    Example:
        >>> import torch
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (3, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w - a).square().sum(),
        ...     valid_loss=lambda batch: w.sum(),
        ... )
        >>> [neumann(problem, None, None, order=k, gamma=0.25)[0].item() for k in range(3)]
        [0.5, 0.75, 0.875]

    References:
        Zhang et al., "iDARTS: Differentiable Architecture Search with Stochastic Implicit
        Gradients", ICML 2021.
        Lorraine, Vicol & Duvenaud, "Optimizing Millions of Hyperparameters by Implicit
        Differentiation", AISTATS 2020.
    """
    require_count("neumann", "order", order, 0)
    gamma = problem.inner.learning_rate if gamma is None else gamma
    if not isinstance(gamma, Tensor) and not gamma > 0:
        raise ConfigError(f"neumann: gamma must be greater than 0, got {gamma!r}")
    products = HessianProducts(problem, train, mode=hvp, radius=radius)

    def damped(u: Sequence[Tensor]) -> list[Tensor]:
        image = products.ww(u)
        # Not in place: autograd may return one tensor twice, or one number for many.
        return vectors.total(image, u, damping) if damping else image

    if check_gamma:
        _require_convergence(gamma, float(largest_eigenvalue(damped, problem.weights)))
    outer, direct = outer_gradients(problem, valid)
    term = [entry.clone() for entry in outer]
    series = [entry.clone() for entry in outer]
    first = vectors.norm(outer)
    lengths = [first]
    for _ in range(order):
        vectors.neumann_step_(series, term, damped(term), gamma)
        lengths.append(vectors.norm(term))
    if max_growth is not None and order:
        _require_bounded(torch.stack(lengths).tolist(), max_growth)
    implicit = vectors.scaled(products.aw(vectors.scaled(series, gamma)), -1.0)
    residual = lengths[-1] / first.clamp_min(vectors.smallest(first))
    return Gradients(direct, implicit, Info(products=dict(products.counts), residual=residual))


def _require_convergence(gamma: float | Tensor, eigenvalue: float) -> None:
    if not 0 < float(gamma) * eigenvalue < 2:
        raise ConfigError(
            "neumann: gamma must lie between 0 and 2 over the Hessian's eigenvalue of largest "
            f"magnitude, {eigenvalue:.4g}, got {float(gamma):.4g}"
        )


def _require_bounded(lengths: Sequence[float], limit: float) -> None:
    for index, length in enumerate(lengths):
        if not length <= limit * lengths[0]:
            raise DivergenceError(
                f"neumann: a term may grow {limit:g}-fold, got {length:.4g} after {lengths[0]:.4g} "
                f"at power {index}; a smaller gamma or order, or more damping, keeps it small"
            )
