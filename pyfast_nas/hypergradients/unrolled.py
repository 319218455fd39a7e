"""Differentiation through steps of the weights' optimizer: DARTS' one step, or several."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from pyfast_nas.errors import ConfigError
from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.base import Gradients, Info, estimator, require_count
from pyfast_nas.hypergradients.first_order import outer_gradients
from pyfast_nas.hypergradients.inner_optimizer import clipping
from pyfast_nas.hypergradients.problem import BilevelProblem, moved
from pyfast_nas.hypergradients.products import HessianProducts, Mode

__all__ = ["MixedAt", "one_step", "unrolled"]

MixedAt = Literal["start", "unrolled"]


@estimator
def unrolled(
    problem: BilevelProblem,
    train: Any,
    valid: Any,
    *,
    steps: int = 1,
    last: int | None = None,
    hvp: Mode = "exact",
    radius: float = 1e-2,
    clip: float | None = None,
    mixed_at: MixedAt = "start",
) -> Gradients:
    r"""Return :math:`d L_{valid}(w_T, \alpha) / d\alpha` through ``steps`` steps of the optimizer.

    With one step this is second-order DARTS with an exact product. The steps start from the
    weights and momentum as they are, and are taken back. The sweep backwards asks for the second
    derivatives at each stored step: it keeps ``steps`` copies of the weights and one graph.

    Args:
        problem: With a weight optimizer: SGD in all its forms; for one step also Adam and AdamW.
        train: Training batch of every step, or a list with one batch for each.
        valid: Validation batch.
        steps: Steps of the optimizer, :math:`T`.
        last: Differentiate through the last of them only; ``None`` goes through all.
        hvp: How products are computed, see `HessianProducts`.
        radius: Of finite differences.
        clip: Largest norm of the gradient in a step, taken for a constant factor; ``None`` does
            not clip, as in the DARTS code.
        mixed_at: Where the mixed derivative of one step is taken: at the weights before it
            (``"start"``), which is the derivative of the step, or after it (``"unrolled"``), which
            reads DARTS as implicit differentiation.

    Raises:
        ConfigError: If an option is out of range or does not fit the optimizer.

    Example:
        >>> import torch
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (-2, 2))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w - a).square().sum(),
        ...     valid_loss=lambda batch: (a * w - 2 * a + 1).sum(),
        ...     weight_optimizer=torch.optim.SGD([w], lr=0.5),
        ... )
        >>> tuple(unrolled(problem, None, None))
        (tensor([2.]),)

    References:
        Liu, Simonyan & Yang, "DARTS", ICLR 2019, eq. 7 and fig. 2.
        Shaban et al., "Truncated Back-propagation for Bilevel Optimization", AISTATS 2019.
    """
    require_count("unrolled", "steps", steps, 1)
    if last is not None:
        require_count("unrolled", "last", last, 1, at_most=steps)
    batches = train if isinstance(train, list) else [train] * steps
    if len(batches) != steps:
        raise ConfigError(f"unrolled: train must hold {steps} batches, got {len(batches)}")
    how = {"hvp": hvp, "radius": radius, "clip": clip}
    if steps == 1:
        return one_step(problem, batches[0], valid, mixed_at=mixed_at, **how)
    if mixed_at != "start":
        raise ConfigError(
            f"unrolled: mixed_at must be 'start' with {steps} steps, got {mixed_at!r}"
        )
    return _several_steps(problem, batches, valid, last=steps if last is None else last, **how)


def one_step(
    problem: BilevelProblem,
    train: Any,
    valid: Any,
    *,
    hvp: Mode,
    radius: float,
    clip: float | None,
    mixed_at: MixedAt,
) -> Gradients:
    """Return the gradient through one step; see `unrolled` for the arguments."""
    if mixed_at not in ("start", "unrolled"):
        raise ConfigError(f"mixed_at must be 'start' or 'unrolled', got {mixed_at!r:.200}")
    inner = problem.inner
    products = HessianProducts(problem, train, mode=hvp, radius=radius)
    gradient, factor = _clipped(problem.gradients("train", train, problem.weights), clip)
    with moved(problem.weights) as start:
        stepped, pull = inner.step(start, gradient)
        vectors.copy_(problem.weights, stepped)
        outer, direct = outer_gradients(problem, valid)
        along = _times(pull(outer), factor)
        implicit = products.aw(along) if mixed_at == "unrolled" else None
    if implicit is None:
        implicit = products.aw(along)
    return Gradients(direct, implicit, Info(products=dict(products.counts)))


def _several_steps(
    problem: BilevelProblem,
    batches: Sequence[Any],
    valid: Any,
    *,
    last: int,
    hvp: Mode,
    radius: float,
    clip: float | None,
) -> Gradients:
    inner = problem.inner
    info = Info()
    trajectory: list[tuple[Any, list[Tensor], Tensor | None, list[bool]]] = []
    with moved(problem.weights) as weights:
        buffers = inner.buffers()
        for batch in batches:
            gradient = problem.gradients("train", batch, problem.weights)
            gradient, factor = _clipped(gradient, clip)
            before = weights
            weights, buffers, existed = inner.sgd_step(before, gradient, buffers)
            trajectory.append((batch, before, factor, existed))
            vectors.copy_(problem.weights, weights)
        outer, direct = outer_gradients(problem, valid)
        implicit = vectors.zeros_like(direct)
        adjoint, of_buffers = list(outer), [None] * len(outer)
        for batch, before, factor, existed in reversed(trajectory[-last:]):
            vectors.copy_(problem.weights, before)
            along, adjoint, of_buffers = inner.sgd_pull(adjoint, of_buffers, existed)
            products = HessianProducts(problem, batch, mode=hvp, radius=radius)
            of_weights, of_alphas = products.both(_times(along, factor))
            vectors.axpy_(implicit, 1.0, of_alphas)
            vectors.axpy_(adjoint, 1.0, of_weights)
            info.products["both"] = info.products.get("both", 0) + 1
    return Gradients(direct, implicit, info)


def _clipped(
    gradient: Sequence[Tensor], limit: float | None
) -> tuple[Sequence[Tensor], Tensor | None]:
    """Return the clipped gradient and its factor, None where nothing is clipped."""
    factor = None if limit is None else clipping(gradient, limit)
    return _times(gradient, factor), factor


def _times(xs: Sequence[Tensor], factor: Tensor | None) -> Sequence[Tensor]:
    return xs if factor is None else vectors.scaled(xs, factor)
