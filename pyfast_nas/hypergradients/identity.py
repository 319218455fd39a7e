"""T1-T2: the inverse Hessian replaced by a number."""

from typing import Any

from torch import Tensor

from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.base import Gradients, Info, estimator
from pyfast_nas.hypergradients.first_order import outer_gradients
from pyfast_nas.hypergradients.problem import BilevelProblem
from pyfast_nas.hypergradients.products import HessianProducts, Mode

__all__ = ["identity"]


@estimator
def identity(
    problem: BilevelProblem,
    train: Any,
    valid: Any,
    *,
    scale: float | Tensor | None = None,
    hvp: Mode = "exact",
    radius: float = 1e-2,
) -> Gradients:
    r"""Return :math:`\nabla_\alpha L_{valid} - s\, G\, \nabla_w L_{valid}` at the current weights.

    One product: cheap and biased. It is the Neumann series of one term.

    Args:
        problem: Losses, weights and architecture parameters.
        train: Batch of the product.
        valid: Validation batch.
        scale: :math:`s`; the weights' current learning rate if ``None``.
        hvp: How the product is computed, see `HessianProducts`.
        radius: Of a finite difference.

    Example:
        >>> import torch
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (3, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w - a).square().sum(),
        ...     valid_loss=lambda batch: w.sum(),
        ... )
        >>> tuple(identity(problem, None, None, scale=0.25))
        (tensor([0.5000]),)

    References:
        Luketina et al., "Scalable Gradient-Based Tuning of Continuous Regularization
        Hyperparameters", ICML 2016.
    """
    scale = problem.inner.learning_rate if scale is None else scale
    products = HessianProducts(problem, train, mode=hvp, radius=radius)
    outer, direct = outer_gradients(problem, valid)
    implicit = vectors.scaled(products.aw(vectors.scaled(outer, scale)), -1.0)
    return Gradients(direct, implicit, Info(products=dict(products.counts)))
