"""The signature of every hypergradient estimator, and what it returns."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol

from torch import Tensor

from pyfast_nas.errors import ConfigError
from pyfast_nas.hypergradients import vectors
from pyfast_nas.hypergradients.problem import BilevelProblem

__all__ = ["Gradients", "Hypergradient", "Info", "estimator", "require_count"]


Options = ParamSpec("Options")


class Hypergradient(Protocol):
    """An estimate of d L_valid(w*(alpha), alpha) / d alpha.

    Options are bound by ``functools.partial``.

    Example:
        >>> from pyfast_nas.hypergradients import first_order
        >>> estimate: Hypergradient = first_order
    """

    def __call__(self, problem: BilevelProblem, train: Any, valid: Any) -> tuple[Tensor, ...]:
        """Return one tensor per architecture parameter."""


@dataclasses.dataclass
class Info:
    """What an estimator did; norms are scalars on the device.

    Attributes:
        products: Products with second derivatives, by kind: ``"ww"``, ``"aw"``, ``"both"``.
        residual: Norm of what the linear solve left over, relative to the right-hand side.
        converged: Whether the solve met its tolerance; None where there is none.
        negative_curvature: Whether the solve met a direction along which the loss bends down.
        direct_norm: Norm of the part at fixed weights.
        implicit_norm: Norm of the part through the weights.
    """

    products: dict[str, int] = dataclasses.field(default_factory=dict)
    residual: Tensor | float | None = None
    converged: bool | None = None
    negative_curvature: bool = False
    direct_norm: Tensor | None = None
    implicit_norm: Tensor | None = None


class Gradients(tuple[Tensor, ...]):
    """One gradient per architecture parameter, with the parts it is the sum of.

    Attributes:
        direct: d L_valid / d alpha at fixed weights.
        implicit: The part through the weights.
        info: What the estimator did.

    Example:
        >>> import torch
        >>> gradients = Gradients([torch.ones(1)], [torch.ones(1)], Info())
        >>> gradients[0], len(gradients), gradients.info.implicit_norm
        (tensor([2.]), 1, tensor(1.))
    """

    direct: tuple[Tensor, ...]
    implicit: tuple[Tensor, ...]
    info: Info

    def __new__(cls, direct: Sequence[Tensor], implicit: Sequence[Tensor], info: Info):
        """Add the two parts, and note their norms."""
        self = super().__new__(cls, vectors.total(direct, implicit))
        self.direct, self.implicit, self.info = tuple(direct), tuple(implicit), info
        info.direct_norm, info.implicit_norm = vectors.norm(direct), vectors.norm(implicit)
        return self

    def __getnewargs__(self):
        """Return what a copy is made of."""
        return self.direct, self.implicit, self.info


def estimator(function: Callable[Options, Gradients]) -> Callable[Options, Gradients]:
    """Let all passes of an estimator share one block that leaves no trace.

    Example:
        >>> @estimator
        ... def nothing(problem, train, valid):
        ...     return Gradients([], [], Info())
        >>> nothing(BilevelProblem(weights=[], alphas=[], train_loss=sum, valid_loss=sum), 0, 0)
        ()
    """

    @functools.wraps(function)
    def quiet(*arguments: Options.args, **options: Options.kwargs) -> Gradients:
        with arguments[0].quiet():
            return function(*arguments, **options)

    return quiet


def require_count(
    function: str, option: str, value: object, least: int, at_most: int | None = None
) -> None:
    """Refuse what is no integer in the range.

    Example:
        >>> require_count("neumann", "order", -1, 0)
        Traceback (most recent call last):
        ...
        pyfast_nas.errors.ConfigError: neumann: order must be an integer at least 0, got -1
    """
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or value < least or (at_most is not None and value > at_most):
        most = "" if at_most is None else f" and at most {at_most}"
        raise ConfigError(
            f"{function}: {option} must be an integer at least {least}{most}, got {value!r:.200}"
        )
