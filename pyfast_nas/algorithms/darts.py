"""DARTS: differentiable architecture search by a softmax over all candidates.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, arXiv 1806.09055.

As printed: the mixed operation (eq. 2), the alternating steps of algorithm 1 with the gradient
through one step of the weights (eqs. 6 to 8) or without it (section 2.3, xi = 0), SGD and Adam with
the printed constants. As in the authors' code where it differs from the print: the learning rate of
the weights falls to 0.001 rather than 0, and the virtual step has momentum and weight decay.
Ours: batch statistics of the architecture pass never reach running averages, and weights come back
from a perturbation to the bit.
"""

import dataclasses
import functools
from typing import Annotated, Any, ClassVar, Literal

import torch

from pyfast_nas import hypergradients
from pyfast_nas.algorithms.bilevel_search import BilevelSearch
from pyfast_nas.algorithms.options import Range
from pyfast_nas.errors import ConfigError
from pyfast_nas.typing import Batch, Metrics

__all__ = ["DARTS"]

Estimator = Literal[
    "first_order",
    "finite_difference",
    "unrolled",
    "identity",
    "neumann",
    "conjugate_gradient",
    "nystrom",
]
_RADIUS = 1e-2


@dataclasses.dataclass(kw_only=True, eq=False)
class DARTS(BilevelSearch):
    """DARTS of first order, of second order, or along any other hypergradient.

    Example:
        >>> import torch
        >>> from pyfast_nas import spaces
        >>> space = spaces.Toy()
        >>> algorithm = DARTS(hypergradient="finite_difference")
        >>> algorithm.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=2)
        >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
        >>> sorted(algorithm.step(batch, batch))[:2]
        ['alpha/gradient_norm', 'train/accuracy']
        >>> algorithm.derive().space
        'toy'

    References:
        Liu, Simonyan & Yang, ICLR 2019, eqs. 2-8 and algorithm 1.
    """

    name: ClassVar[str] = "darts"

    hypergradient: Estimator = "first_order"
    """Gradient of the architecture: at fixed weights ("first_order"), through one step of the
    weights by central differences (DARTS of second order, "finite_difference") or exactly
    ("unrolled"), or as if the weights were at their optimum (the others)."""

    hvp: Literal["exact", "finite_difference"] = "exact"
    """How products with second derivatives are taken where the hypergradient does not say: exactly,
    in the memory of several plain steps, or by central differences of kernel gradients."""

    radius: Annotated[float, Range(above=0)] = _RADIUS
    """Length of the step of the central differences."""

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = f"hypergradient={self.hypergradient!r}"
        if self.hvp != "exact" and self.hypergradient in ("first_order", "finite_difference"):
            raise ConfigError(
                f"DARTS: hvp must be 'exact' with {chosen}, which leaves no choice of products, "
                f"got {self.hvp!r}"
            )
        differences = "finite_difference" in (self.hypergradient, self.hvp)
        if self.radius != _RADIUS and not differences:
            raise ConfigError(
                f"DARTS: radius must be {_RADIUS:g} with {chosen} and hvp={self.hvp!r}, which take "
                f"no differences, got {self.radius:g}"
            )

    @property
    def why_not_recorded(self) -> str:
        """Why the device's part of a step is not recorded; empty where it is."""
        if self.hypergradient == "first_order":
            return ""
        return f"a step along hypergradient={self.hypergradient!r} is not recorded"

    def step(self, train: Batch, valid: Batch) -> Metrics:
        """Make one architecture step on ``valid``, then one weight step on ``train``."""
        self.start_step()
        metrics = self.run_step(train, valid)
        self.finish_step()
        return metrics

    def run_step(self, train: Batch, valid: Batch) -> Metrics:
        """Do the device's part of a step: the same work every time."""
        metrics = self._architecture_step(self._estimate(), train, valid)
        return metrics | self._weight_step(train)

    def finish_step(self) -> None:
        """Count the step that was made."""
        super().finish_step()
        self.alpha_steps += 1

    def _estimate(self) -> hypergradients.Hypergradient:
        estimate = getattr(hypergradients, self.hypergradient)
        if self.hypergradient == "first_order":
            return estimate
        options: dict[str, Any] = {"radius": self.radius}
        if self.hypergradient != "finite_difference":
            options["hvp"] = self.hvp
        if self.hypergradient == "nystrom":
            # The streams are given back after the step: other columns need a stream of their own.
            seed = (self.generator or torch.default_generator).initial_seed() + self.steps
            options["generator"] = torch.Generator("cpu").manual_seed(seed % 2**63)
        return functools.partial(estimate, **options)
