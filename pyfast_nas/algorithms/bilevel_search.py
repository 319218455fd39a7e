"""What searches share that train a mixture of all candidates and differentiate through its weights.

The mixture as a bilevel problem, the architecture step along an estimate of its hypergradient, the
weight step.
"""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from pyfast_nas.algorithms.gradient_search import GradientSearch, softmax_gates
from pyfast_nas.hypergradients import BilevelProblem, Hypergradient
from pyfast_nas.typing import Batch, Metrics

__all__ = ["BilevelSearch"]


@dataclasses.dataclass(kw_only=True, eq=False)
class BilevelSearch(GradientSearch):
    """A search in the softmax of all candidates."""

    def bilevel_problem(self, metrics: Metrics | None = None) -> BilevelProblem:
        """Return the problem whose hypergradient moves the architecture parameters.

        Args:
            metrics: Takes the metrics of the first validation pass.

        Example:
            >>> import torch
            >>> from pyfast_nas import hypergradients, spaces
            >>> from pyfast_nas.algorithms import DARTS
            >>> space, algorithm = spaces.Toy(), DARTS()
            >>> algorithm.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=1)
            >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
            >>> problem = algorithm.bilevel_problem()
            >>> [g.shape for g in hypergradients.first_order(problem, batch, batch)]
            [torch.Size([2, 4])]
        """
        return BilevelProblem(
            weights=self.weights,
            alphas=self.alpha_parameters,
            train_loss=self._mixture_loss("train", {}),
            valid_loss=self._mixture_loss("valid", {} if metrics is None else metrics),
            weight_optimizer=self.weight_optimizer,
            without_trace=self._without_trace,
        )

    def _mixture_loss(self, split: str, metrics: Metrics) -> Callable[[Batch], Tensor]:
        def loss_of(batch: Batch) -> Tensor:
            gates = softmax_gates(self.supernet.logits())
            # Here, since every pass begins at the same state of the streams.
            with self._noting_draws():
                loss, _, found = self._evaluate(split, batch, gates)
            for name, value in found.items():
                metrics.setdefault(name, value)
            return loss

        return loss_of

    def _architecture_step(self, estimate: Hypergradient, train: Batch, valid: Batch) -> Metrics:
        metrics: Metrics = {}
        gradients = estimate(self.bilevel_problem(metrics), train, valid)
        return metrics | self._update_alphas(gradients)

    def _weight_step(self, train: Batch) -> Metrics:
        with self._weight_update():
            # Gates without a gradient: nothing of the training loss falls on the alphas.
            loss, _, metrics = self._evaluate("train", train, softmax_gates(self._logits()))
            loss.backward()
        return metrics
