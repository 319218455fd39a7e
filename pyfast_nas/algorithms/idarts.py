"""iDARTS: differentiable architecture search with stochastic implicit gradients.

Zhang, Su, Pan, Chang, Abbasnejad & Haffari, "iDARTS: Differentiable Architecture Search with
Stochastic Implicit Gradients", ICML 2021, arXiv 2106.10784.

From the paper: the implicit hypergradient with a truncated Neumann series in place of the inverse
Hessian, on single batches, after T real steps of the weights. From the authors' code: T = 4, K = 2,
the series' step size is the current learning rate of the weights. Ours: the products are exact by
default, no batch statistics move in them, and the weights stay as they are: the code ends its
products with weights moved along the validation gradient.
"""

import dataclasses
import functools
from typing import Annotated, ClassVar, Literal

from pyfast_nas import hypergradients
from pyfast_nas.algorithms.bilevel_search import BilevelSearch
from pyfast_nas.algorithms.options import Range
from pyfast_nas.typing import Batch, Metrics

__all__ = ["IDARTS"]


@dataclasses.dataclass(kw_only=True, eq=False)
class IDARTS(BilevelSearch):
    """iDARTS: an architecture step after every T weight steps.

    Before every T weight steps but the first the architecture moves: ``valid`` gives the outer
    gradients, and ``train``, which no weight step has seen yet, all products.

    Example:
        >>> import torch
        >>> from pyfast_nas import spaces
        >>> space = spaces.Toy()
        >>> algorithm = IDARTS(inner_steps=2)
        >>> algorithm.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=4)
        >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
        >>> ["valid/loss" in algorithm.step(batch, batch) for _ in range(4)]
        [False, False, True, False]

    References:
        Zhang et al., ICML 2021, eq. 8 and algorithm 1.
    """

    name: ClassVar[str] = "idarts"
    why_not_recorded: ClassVar[str] = "an architecture step is made every few steps only"

    inner_steps: Annotated[int, Range(at_least=1)] = 4
    """Weight steps between two architecture steps (T)."""

    neumann_order: Annotated[int, Range(at_least=0)] = 2
    """Index of the series' last term (K): K products with the Hessian, K + 1 terms."""

    gamma: Annotated[float | None, Range(above=0)] = None
    """Step size of the series; by default the current learning rate of the weights."""

    damping: Annotated[float, Range(at_least=0)] = 0.0
    """Multiple of the identity that is added to the Hessian: the weight decay would make it that of
    the loss that SGD minimises; the authors' code adds none."""

    hvp: Literal["exact", "finite_difference"] = "exact"
    """How products with second derivatives are taken: exactly, in the memory of several plain
    steps, or by central differences of kernel gradients."""

    def step(self, train: Batch, valid: Batch) -> Metrics:
        """Make an architecture step if it is time, then one weight step on ``train``."""
        self.start_step()
        metrics: Metrics = {}
        if self.steps and self.steps % self.inner_steps == 0:
            metrics = self._architecture_step(self._estimate, train, valid)
            self.alpha_steps += 1
        metrics |= self._weight_step(train)
        self.finish_step()
        return metrics

    @functools.cached_property
    def _estimate(self) -> hypergradients.Hypergradient:
        return functools.partial(
            hypergradients.neumann,
            order=self.neumann_order,
            gamma=self.gamma,
            damping=self.damping,
            hvp=self.hvp,
        )
