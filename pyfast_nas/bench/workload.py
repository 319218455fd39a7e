"""One provider on one case, ready to be called; and the check that it computes the right thing."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyfast_nas.errors import Error
from pyfast_nas.testing import TOLERANCE, relative_error

__all__ = ["DEEP", "FLOAT64", "KINKS", "Errors", "Rotation", "Workload",
           "WrongResultError", "check"]  # fmt: skip

# The gradient of a network with ReLUs and max pools has steps. Of the 65,000 values in front of the
# last classifier a few lie so close to one that float32 takes the other side, and each that does
# counts about one in 256 for every gradient below it: plain PyTorch comes to 1.5 % for single
# tensors. A tensor that is wrong is off by as much as it is long. The outcome has no steps, and in
# float64 no value is so close to one: there the limits are sharp.
KINKS = 5e-2
DEEP = 1e-4  # rounding of the outcome, carried through eight cells
# In float64 rounding grows through eight cells, and no value is close enough to a step to cross it.
FLOAT64 = 1e-9
# The gradient of a bias in front of a batch norm is zero, and comes out as the rounding of terms
# that cancel: below this share of the largest gradient, in float64, it is held to that one's size.
VANISHING = 1e-12
HOPELESS = 0.1  # of the plain provider: then float64 is no truth about it any more


class WrongResultError(Error, ArithmeticError):
    """A provider computes something else: there is nothing to time."""


class Errors(NamedTuple):
    """Relative root-mean-square errors of one provider.

    Attributes:
        outcome: Of what forward gives.
        gradients: Of the gradient that is worst.
    """

    outcome: float
    gradients: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What is called in each mode.

    Attributes:
        forward: The computation without gradients.
        run: The same with a graph; its outcome is what backward starts from.
        leaves: Tensors whose gradients are taken.
        gradient: Gradient of the outcome; None for an outcome that is a scalar.
        parameters: Tensors that are in memory anyway.
    """

    forward: Callable[[], object]
    run: Callable[[], Tensor]
    leaves: Sequence[Tensor]
    gradient: Tensor | None = None
    parameters: Sequence[Tensor] = ()

    def call(self, mode: str) -> Callable[[], object]:
        """Return the call of ``"forward"``, ``"backward"`` or ``"both"``."""
        if mode == "forward":
            return self.forward
        if mode == "both":
            return self._both
        y = self.run()
        return functools.partial(self._gradients, y, retain_graph=True)

    def results(self) -> list[Tensor]:
        """Return the outcome and the gradients; zeros where nothing depends on a leaf."""
        y = self.run()
        return [y.detach(), *self._gradients(y)]

    def _both(self) -> Sequence[Tensor]:
        return self._gradients(self.run())

    def _gradients(self, y: Tensor, retain_graph: bool = False) -> Sequence[Tensor]:
        return torch.autograd.grad(
            y, self.leaves, self.gradient, retain_graph=retain_graph, materialize_grads=True
        )


class Rotation:
    """The same call on several sets of tensors in turn, so that none waits in a cache.

    Args:
        works: The provider on each set.
    """

    def __init__(self, works: Sequence[Workload]) -> None:
        self.works = works
        self.run, self.parameters = works[0].run, works[0].parameters

    def call(self, mode: str) -> Callable[[], object]:
        """Return a call of that mode, on another set each time."""
        calls = itertools.cycle([work.call(mode) for work in self.works])
        return lambda: next(calls)()

    def results(self) -> list[Tensor]:
        """Return those of the first set."""
        return self.works[0].results()


def check(
    providers: Mapping[str, Sequence[Tensor]],
    truth: Sequence[Tensor],
    plain: str,
    case: str,
    *,
    tolerance: float | None = None,
    kinks: float | None = None,
) -> dict[str, Errors]:
    """Compare every provider's outcome and gradients with float64; return their errors.

    A provider may be twice as wrong as the plain one, since rounding differs between orders of
    summation, plus the tolerance. Every gradient is held to that on its own, however small it is,
    but one that vanishes is held to the size of the largest.

    Args:
        providers: Name -> outcome and gradients.
        truth: The same in float64.
        plain: The provider that is plain PyTorch.
        case: What to call the case in the message.
        tolerance: Relative; by default that of one operation.
        kinks: In its place for the gradients.

    Raises:
        WrongResultError: If a provider is further off than that, or the plain one too far for
            anything to be said.

    Example:
        >>> one = torch.ones(3)
        >>> check({"loop": [one], "fused": [one]}, [one.double()], "loop", "ones")["fused"]
        Errors(outcome=0.0, gradients=0.0)
    """
    found = {name: _errors(results, truth) for name, results in providers.items()}
    if tolerance is None:
        tolerance = TOLERANCE[providers[plain][0].dtype]
    allowed = Errors(tolerance, tolerance if kinks is None else kinks)
    for part in Errors._fields:
        limit = min(2 * getattr(found[plain], part) + getattr(allowed, part), HOPELESS)
        for name, errors in found.items():
            if not getattr(errors, part) <= limit:
                raise WrongResultError(
                    f"bench: {name} must compute the {part} of {case} to a relative error of "
                    f"{limit:.1e}, got {getattr(errors, part):.1e}"
                )
    return found


def _errors(results: Sequence[Tensor], truth: Sequence[Tensor]) -> Errors:
    largest = max(map(_size, truth[1:]), default=0.0)
    gradients = [
        _size(got - want) / largest
        if _size(want) < VANISHING * largest
        else relative_error(got, want)
        for got, want in zip(results[1:], truth[1:], strict=True)
    ]
    # A maximum would pass NaN over.
    worst = max(gradients, default=0.0) if all(map(math.isfinite, gradients)) else math.inf
    return Errors(relative_error(results[0], truth[0]), worst)


def _size(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt()) if values.numel() else 0.0
