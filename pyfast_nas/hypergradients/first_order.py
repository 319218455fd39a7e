"""First order: the derivative at fixed weights."""

from typing import Any

from torch import Tensor

from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.base import Gradients, Info, estimator
from pyfast_nas.hypergradients.problem import BilevelProblem

__all__ = ["first_order", "outer_gradients"]


@estimator
def first_order(problem: BilevelProblem, train: Any, valid: Any) -> Gradients:
    r"""Return :math:`\nabla_\alpha L_{valid}(w, \alpha)`, as if the weights did not answer.

    Args:
        problem: Losses, weights and architecture parameters.
        train: Not looked at.
        valid: Validation batch.

    Example:
        >>> import torch
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (2, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w - a).square().sum(),
        ...     valid_loss=lambda batch: (w * a.pow(2)).sum(),
        ... )
        >>> tuple(first_order(problem, None, None))
        (tensor([12.]),)

    References:
        Liu, Simonyan & Yang, "DARTS", ICLR 2019, section 2.3 with xi = 0.
    """
    direct = problem.gradients("valid", valid, problem.alphas)
    return Gradients(direct, vectors.zeros_like(direct), Info())


def outer_gradients(
    problem: BilevelProblem, valid: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the gradients of the validation loss by the weights and by the alphas, in one pass.

    Example:
        >>> import torch
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (2, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w - a).square().sum(),
        ...     valid_loss=lambda batch: (w * a).sum(),
        ... )
        >>> outer_gradients(problem, None)
        ((tensor([3.]),), (tensor([2.]),))
    """
    gradients = problem.gradients("valid", valid, (*problem.weights, *problem.alphas))
    return gradients[: len(problem.weights)], gradients[len(problem.weights) :]
