"""One provider on one case, ready to be called; and the check that it computes the right thing."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pyfast_nas.errors import Error
from pyfast_nas.testing import TOLERANCE, relative_error

__all__ = ["KINKS", "Workload", "WrongResultError", "check"]

# What float32 may lose in plain PyTorch before float64 is no truth about it any more.
LARGEST_PLAIN_ERROR = 1e-2
# The gradient of a network with ReLUs and max pools has steps. Of some million values a few lie so
# close to one that float32 takes the other side, and each of them that does counts about one in the
# square root of their number: plain NCHW and plain channels-last are up to 1e-3 apart. In float64,
# where no value is that close, there is no such excuse.
KINKS = 5e-3


class WrongResultError(Error, ArithmeticError):
    """A provider computes something else: there is nothing to time."""


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


def check(
    providers: Mapping[str, Sequence[Tensor]],
    truth: Sequence[Tensor],
    plain: str,
    case: str,
    tolerance: float | None = None,
) -> dict[str, float]:
    """Compare every provider's outcome and gradients with float64; return their errors.

    An error is the relative root-mean-square error of the outcome, or the root mean square of
    those of the gradients if that is larger: each gradient counts as much, however small it is. A
    provider may be twice as wrong as the plain one, as rounding differs between orders of
    summation, plus the tolerance of one operation.

    Args:
        providers: Name -> outcome and gradients.
        truth: The same in float64.
        plain: The provider that is plain PyTorch.
        case: What to call the case in the message.
        tolerance: In place of that of one operation.

    Raises:
        WrongResultError: If a provider is further off than that, or the plain one too far for
            anything to be said.

    Example:
        >>> one = torch.ones(3)
        >>> check({"loop": [one], "fused": [one]}, [one.double()], "loop", "three ones")
        {'loop': 0.0, 'fused': 0.0}
    """
    errors = {name: _error(results, truth) for name, results in providers.items()}
    if tolerance is None:
        tolerance = TOLERANCE[providers[plain][0].dtype]
    limit = min(2 * errors[plain] + tolerance, LARGEST_PLAIN_ERROR)
    for name, error in errors.items():
        if not error <= limit:
            raise WrongResultError(
                f"bench: {name} must compute {case} to a relative error of {limit:.1e}, "
                f"got {error:.1e}"
            )
    return errors


def _error(results: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    outcome, *gradients = (
        relative_error(got, want) for got, want in zip(results, truth, strict=True)
    )
    overall = math.sqrt(sum(e * e for e in gradients) / max(len(gradients), 1))
    # A comparison with NaN would pass it over.
    return max(outcome, overall) if math.isfinite(outcome + overall) else math.inf
