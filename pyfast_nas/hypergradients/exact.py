"""The implicit function theorem with the whole Hessian: the truth for tests of the others."""

from typing import Any

import torch

from pyfast_nas.errors import ConfigError
from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.base import Gradients, Info, estimator
from pyfast_nas.hypergradients.first_order import outer_gradients
from pyfast_nas.hypergradients.problem import BilevelProblem
from pyfast_nas.hypergradients.products import HessianProducts

__all__ = ["exact"]

# 128 MiB in double precision, and as many products.
MAX_WEIGHTS = 4096


@estimator
def exact(problem: BilevelProblem, train: Any, valid: Any, *, damping: float = 0.0) -> Gradients:
    r"""Return the implicit hypergradient by a dense solve.

    That is :math:`\nabla_\alpha L_{valid} - G (H + \rho I)^{-1} \nabla_w L_{valid}`. For small
    problems: one product per weight.

    Args:
        problem: Losses, weights (at most 4096 numbers) and architecture parameters.
        train: Training batch.
        valid: Validation batch.
        damping: :math:`\rho`.

    Raises:
        ConfigError: If there are too many weights.

    Example:
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (3, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w - a).square().sum(),
        ...     valid_loss=lambda batch: w.sum(),
        ... )
        >>> tuple(exact(problem, None, None))
        (tensor([1.]),)

    References:
        Larsen et al., "Design and regularization of neural networks: the optimal use of a
        validation set", 1996.
    """
    size = sum(weight.numel() for weight in problem.weights)
    if size > MAX_WEIGHTS:
        raise ConfigError(
            f"exact: weights must be at most {MAX_WEIGHTS} numbers, got {size}; "
            "conjugate_gradient solves the same system"
        )
    products = HessianProducts(problem, train)
    outer, direct = outer_gradients(problem, valid)
    hessian = vectors.columns(products.ww, problem.weights, range(size)).double()
    hessian.diagonal().add_(damping)
    flat = vectors.flatten(outer)
    value = torch.linalg.solve(hessian, flat.double()).to(flat.dtype)
    implicit = vectors.scaled(products.aw(vectors.unflatten(value, outer)), -1.0)
    return Gradients(direct, implicit, Info(products=dict(products.counts)))
