"""The implicit function theorem with a linear solve by conjugate gradients."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast_nas.errors import DivergenceError
from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.base import Gradients, Info, estimator, require_count
from pyfast_nas.hypergradients.first_order import outer_gradients
from pyfast_nas.hypergradients.problem import BilevelProblem
from pyfast_nas.hypergradients.products import HessianProducts, Mode
from pyfast_nas.ops import tensor_list

__all__ = ["Solution", "conjugate_gradient", "solve"]


@estimator
def conjugate_gradient(
    problem: BilevelProblem,
    train: Any,
    valid: Any,
    *,
    maxiter: int = 10,
    rtol: float = 1e-5,
    atol: float = 0.0,
    damping: float = 0.0,
    normal_equations: bool = False,
    hvp: Mode = "exact",
    radius: float = 1e-2,
    max_growth: float | None = 10.0,
) -> Gradients:
    r"""Return the implicit hypergradient, its linear system solved by conjugate gradients.

    That is :math:`\nabla_\alpha L_{valid} - G z` with :math:`(H + \rho I) z = \nabla_w L_{valid}`.
    Takes one product with :math:`H` per iteration and one with :math:`G`; each iteration reads two
    numbers on the host.

    Args:
        problem: Losses, weights and architecture parameters.
        train: Batch of the products.
        valid: Validation batch.
        maxiter: Iterations at most.
        rtol: Stop at this length of the residual over that of the right-hand side.
        atol: Stop at this length of the residual.
        damping: :math:`\rho`; :math:`H + \rho I` must be positive definite, which
            ``info.negative_curvature`` says where it is seen not to be: the solve then ends with
            what it has.
        normal_equations: Solve :math:`(H^2 + \rho I) z = H v` instead, for an indefinite
            :math:`H`; twice the products.
        hvp: How products are computed, see `HessianProducts`.
        radius: Of finite differences.
        max_growth: How many times its first length the residual may reach; ``None`` does not look.

    Raises:
        ConfigError: If an option is out of range.
        DivergenceError: If the residual grows by more than ``max_growth``.

    Example:
        >>> import torch
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (3, 3))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w - a).square().sum(),
        ...     valid_loss=lambda batch: w.sum(),
        ... )
        >>> gradients = conjugate_gradient(problem, None, None)
        >>> gradients[0], gradients.info.converged
        (tensor([1.]), True)

    References:
        Pedregosa, "Hyperparameter optimization with approximate gradient", ICML 2016.
        Rajeswaran et al., "Meta-Learning with Implicit Gradients", NeurIPS 2019.
    """
    require_count("conjugate_gradient", "maxiter", maxiter, 1)
    products = HessianProducts(problem, train, mode=hvp, radius=radius)
    outer, direct = outer_gradients(problem, valid)

    def damped(u: Sequence[Tensor]) -> list[Tensor]:
        image = products.ww(products.ww(u)) if normal_equations else products.ww(u)
        # Not in place: autograd may return one tensor twice, or one number for many.
        return vectors.total(image, u, damping) if damping else image

    right = products.ww(outer) if normal_equations else outer
    solution = solve(damped, right, maxiter=maxiter, rtol=rtol, atol=atol, max_growth=max_growth)
    implicit = vectors.scaled(products.aw(solution.value), -1.0)
    info = Info(
        products=dict(products.counts),
        residual=solution.residual,
        converged=solution.converged,
        negative_curvature=solution.negative_curvature,
    )
    return Gradients(direct, implicit, info)


@dataclasses.dataclass
class Solution:
    """What a linear solve came to.

    Attributes:
        value: The vector found.
        residual: Length of what is left over that of the right-hand side, as the recurrence has it.
        converged: Whether that is within the tolerance.
        negative_curvature: Whether a direction was met along which the operator is not positive.
        iterations: Products taken.
    """

    value: list[Tensor]
    residual: float
    converged: bool
    negative_curvature: bool
    iterations: int


def solve(
    operator: Callable[[list[Tensor]], list[Tensor]],
    right: Sequence[Tensor],
    *,
    maxiter: int,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_growth: float | None = 10.0,
) -> Solution:
    """Solve ``operator(z) = right`` by conjugate gradients from zero.

    Args:
        operator: Symmetric and positive definite.
        right: Right-hand side.
        maxiter: Iterations at most.
        rtol: Tolerance over the length of the right-hand side.
        atol: Tolerance of the residual's length.
        max_growth: How many times its first length the residual may reach; ``None`` does not look.

    Raises:
        DivergenceError: If the residual grows by more than ``max_growth``.

    Example:
        >>> import torch
        >>> solve(lambda z: [2.0 * z[0]], [torch.ones(3)], maxiter=5).value
        [tensor([0.5000, 0.5000, 0.5000])]

    References:
        Hestenes & Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.
    """
    if not right:
        return Solution([], 0.0, True, False, 0)
    # One dtype for all: the scalars of a step are those of the whole vector.
    wide = functools.reduce(torch.promote_types, (entry.dtype for entry in right))
    residual = [entry.to(wide, copy=True) for entry in right]
    direction = [entry.to(wide, copy=True) for entry in right]
    value = vectors.zeros_like(residual)
    state = tensor_list.cg_start(residual)
    first = length = math.sqrt(float(state[0]))
    goal = max(rtol * first, atol)
    iterations, negative = 0, False
    while length > goal and iterations < maxiter and not negative:
        image = operator(_like(direction, right))
        tensor_list.cg_step_(value, residual, direction, [h.to(wide) for h in image], state)
        iterations += 1
        square, *_, stopped = state.tolist()
        length, negative = math.sqrt(square), bool(stopped)
        if max_growth is not None and not length <= max_growth * first:
            raise DivergenceError(
                f"conjugate_gradient: the residual may grow {max_growth:g}-fold, got {length:.4g} "
                f"after {first:.4g} at iteration {iterations}; more damping keeps it small"
            )
    relative = length / first if first else 0.0
    return Solution(_like(value, right), relative, length <= goal, negative, iterations)


def _like(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.to(other.dtype) for tensor, other in zip(tensors, others, strict=True)]
