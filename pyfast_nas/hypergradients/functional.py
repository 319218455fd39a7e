"""Hypergradients of plain functions and of modules, for problems that are no search."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyfast_nas.errors import ConfigError
from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.base import Gradients, Hypergradient, Info
from pyfast_nas.hypergradients.conjugate_gradient import conjugate_gradient
from pyfast_nas.hypergradients.exact import exact
from pyfast_nas.hypergradients.finite_difference import finite_difference
from pyfast_nas.hypergradients.first_order import first_order
from pyfast_nas.hypergradients.identity import identity
from pyfast_nas.hypergradients.inner_optimizer import InnerOptimizer
from pyfast_nas.hypergradients.neumann import neumann
from pyfast_nas.hypergradients.nystrom import nystrom
from pyfast_nas.hypergradients.problem import BilevelProblem
from pyfast_nas.hypergradients.unrolled import unrolled
from pyfast_nas.typing import Batch, LossFn

__all__ = ["ESTIMATORS", "HypergradResult", "hypergradient", "module_hypergradient"]

ESTIMATORS: dict[str, Callable[..., Gradients]] = {
    "conjugate_gradient": conjugate_gradient,
    "exact": exact,
    "finite_difference": finite_difference,
    "first_order": first_order,
    "identity": identity,
    "neumann": neumann,
    "nystrom": nystrom,
    "unrolled": unrolled,
}

Tree = Any  # a tensor, or lists, tuples and dictionaries of trees


class HypergradResult(NamedTuple):
    """Gradients by the hyper-parameters, in the structure in which these were given.

    Attributes:
        grads: ``direct + implicit``.
        direct: At fixed parameters.
        implicit: Through the parameters.
        info: What the estimator did.
    """

    grads: Tree
    direct: Tree
    implicit: Tree
    info: Info


def hypergradient(
    outer_loss: Callable[[Tree, Tree], Tensor],
    inner_loss: Callable[[Tree, Tree], Tensor],
    params: Tree,
    hparams: Tree,
    *,
    method: str | Hypergradient = "conjugate_gradient",
    inner_optimizer: torch.optim.Optimizer | None = None,
    strict: bool = False,
    accumulate: bool | None = None,
    **options: Any,
) -> HypergradResult:
    """Return the gradient of the outer loss by ``hparams``; the inner one trains ``params``.

    Args:
        outer_loss: ``(params, hparams) -> scalar``.
        inner_loss: ``(params, hparams) -> scalar``.
        params: Tensors in lists, tuples and dictionaries, nested as you like; never changed.
        hparams: Likewise.
        method: A name of ``ESTIMATORS``, or an estimator.
        inner_optimizer: What trains ``params``: its learning rate, momentum and decay are read, and
            nothing of it is changed.
        strict: Refuse hyper-parameters that neither loss depends on; else their gradient is zero.
        accumulate: ``True`` adds the gradients to the ``.grad`` of ``hparams``, ``False`` assigns
            them, ``None`` leaves ``.grad`` alone.
        options: Those of the estimator.

    Raises:
        ConfigError: If ``method`` is unknown, or a tree is empty, or ``strict`` finds a
            hyper-parameter without influence.
        TypeError: If a tree holds something else than floating-point tensors.

    Example:
        >>> data = torch.tensor([1.0, 3.0])
        >>> result = hypergradient(
        ...     lambda w, h: (w["w"] - 1).square(),
        ...     lambda w, h: (w["w"] - data).square().sum() + h["ridge"] * w["w"].square(),
        ...     {"w": torch.tensor(1.0)},
        ...     {"ridge": torch.tensor(2.0)},
        ... )
        >>> result.grads  # w = 4 / (2 + ridge) = 1 is where the outer loss is least
        {'ridge': tensor(0.)}
    """
    weights, tree_of_weights = _leaves("params", params)
    alphas, tree_of_alphas = _leaves("hparams", hparams)
    own_weights, own_alphas = (
        [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in tensors]
        for tensors in (weights, alphas)
    )

    def bound(loss: Callable[[Tree, Tree], Tensor]) -> Callable[[Any], Tensor]:
        return lambda _: loss(
            pytree.tree_unflatten(own_weights, tree_of_weights),
            pytree.tree_unflatten(own_alphas, tree_of_alphas),
        )

    inner = None if inner_optimizer is None else InnerOptimizer(inner_optimizer, weights)
    problem = BilevelProblem(
        weights=own_weights,
        alphas=own_alphas,
        train_loss=bound(inner_loss),
        valid_loss=bound(outer_loss),
        weight_optimizer=inner,
    )
    gradients = _estimate(problem, None, None, method, strict, options)
    _write(alphas, gradients, accumulate)
    return HypergradResult(
        *(
            pytree.tree_unflatten(list(part), tree_of_alphas)
            for part in (gradients, gradients.direct, gradients.implicit)
        ),
        gradients.info,
    )


def module_hypergradient(
    model: nn.Module,
    train: Batch,
    valid: Batch,
    *,
    hparams: Sequence[Tensor] | None = None,
    loss: LossFn = F.cross_entropy,
    valid_loss: LossFn | None = None,
    method: str | Hypergradient = "conjugate_gradient",
    inner_optimizer: torch.optim.Optimizer | None = None,
    strict: bool = False,
    accumulate: bool | None = None,
    **options: Any,
) -> HypergradResult:
    """Return the gradient of a module's validation loss by some parameters, the others trained.

    Args:
        model: Called with the inputs of a batch.
        train: Training batch, ``(inputs, labels)``.
        valid: Validation batch.
        hparams: The parameters that are not trained; ``model.arch_parameters()`` if ``None``.
        loss: ``(outputs, labels) -> scalar``.
        valid_loss: The outer loss, where it is another one.
        method: A name of ``ESTIMATORS``, or an estimator.
        inner_optimizer: What trains the other parameters; read, never changed.
        strict: As in `hypergradient`.
        accumulate: As in `hypergradient`.
        options: Those of the estimator.

    Raises:
        ConfigError: As in `hypergradient`.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> batch = torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
        >>> result = module_hypergradient(
        ...     model, batch, batch, hparams=[model.bias], method="identity", scale=0.1
        ... )
        >>> [gradient.shape for gradient in result.grads]
        [torch.Size([2])]
    """
    problem = BilevelProblem.of_module(
        model, alphas=hparams, loss=loss, valid_loss=valid_loss, weight_optimizer=inner_optimizer
    )
    gradients = _estimate(problem, train, valid, method, strict, options)
    _write(problem.alphas, gradients, accumulate)
    return HypergradResult(tuple(gradients), gradients.direct, gradients.implicit, gradients.info)


def _leaves(kind: str, tree: Tree) -> tuple[list[Tensor], pytree.TreeSpec]:
    leaves, structure = pytree.tree_flatten(tree)
    if not leaves:
        raise ConfigError(f"hypergradient: {kind} must hold at least one tensor, got {tree!r:.200}")
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            what = str(leaf.dtype) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise TypeError(f"hypergradient: {kind} must hold floating-point tensors, got {what}")
    return leaves, structure


def _estimate(
    problem: BilevelProblem,
    train: Any,
    valid: Any,
    method: str | Hypergradient,
    strict: bool,
    options: dict[str, Any],
) -> Gradients:
    estimator = ESTIMATORS.get(method) if isinstance(method, str) else method
    if estimator is None:
        raise ConfigError(
            f"hypergradient: method must be one of {', '.join(ESTIMATORS)}, got {method!r:.200}"
        )
    if strict:
        _require_influence(problem, train, valid)
    gradients = estimator(problem, train, valid, **options)
    if isinstance(gradients, Gradients):
        return gradients
    # Somebody else's estimator: the whole stands for the direct part.
    return Gradients(gradients, vectors.zeros_like(gradients), Info())


def _require_influence(problem: BilevelProblem, train: Any, valid: Any) -> None:
    with problem.one_pass():
        loss = problem.train_loss(train) + problem.valid_loss(valid)
        found = torch.autograd.grad(loss, problem.alphas, allow_unused=True)
    for place, gradient in enumerate(found):
        if gradient is None:
            raise ConfigError(
                f"hypergradient: hparams must have an influence on a loss, got none of number "
                f"{place}, of shape {list(problem.alphas[place].shape)}"
            )


def _write(tensors: Sequence[Tensor], gradients: Sequence[Tensor], accumulate: bool | None) -> None:
    if accumulate is None:
        return
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if accumulate and tensor.grad is not None:
            tensor.grad = tensor.grad + gradient
        else:
            tensor.grad = gradient.clone()
