"""DARTS: differentiable architecture search by a softmax over all candidates.

Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, arXiv 1806.09055.

As printed: the mixed operation (eq. 2), the alternating steps of algorithm 1 with the first-order
gradient (section 2.3, xi = 0), SGD and Adam with the printed constants. As in the authors' code
where it differs from the print: the learning rate of the weights falls to 0.001 rather than 0.
Ours: batch statistics of the architecture pass never reach running averages.
"""

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from pyfast_nas.algorithms.gradient_search import GradientSearch, softmax_gates
from pyfast_nas.typing import Batch, Metrics

__all__ = ["DARTS"]


@dataclasses.dataclass(kw_only=True, eq=False)
class DARTS(GradientSearch):
    """First-order DARTS.

    Example:
        >>> import torch
        >>> from pyfast_nas import spaces
        >>> space = spaces.Toy()
        >>> algorithm = DARTS()
        >>> algorithm.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=2)
        >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
        >>> sorted(algorithm.step(batch, batch))[:2]
        ['alpha/gradient_norm', 'train/accuracy']
        >>> algorithm.derive().space
        'toy'

    References:
        Liu, Simonyan & Yang, ICLR 2019, eqs. 2-4 and algorithm 1.
    """

    name: ClassVar[str] = "darts"

    @property
    def why_not_recorded(self) -> str:
        """Why a step is not the same work every time: it is."""
        return ""

    def step(self, train: Batch, valid: Batch) -> Metrics:
        """Make one architecture step on ``valid``, then one weight step on ``train``."""
        self.start_step()
        metrics = self.run_step(train, valid)
        self.finish_step()
        return metrics

    def run_step(self, train: Batch, valid: Batch) -> Metrics:
        """Do the device's part of a step: the same work every time."""
        return self._architecture_step(train, valid) | self._weight_step(train)

    def finish_step(self) -> None:
        """Count the step that was made."""
        super().finish_step()
        self.alpha_steps += 1

    def hypergradient(self, train: Batch, valid: Batch) -> tuple[Metrics, tuple[Tensor, ...]]:
        """Return d L_valid(w, alpha) / d alpha at fixed weights, and the metrics of the pass.

        Any other estimate of d L_valid(w*(alpha), alpha) / d alpha is a method in place of this.
        """
        loss, _, metrics = self._evaluate("valid", valid, softmax_gates(self.supernet.logits()))
        return metrics, torch.autograd.grad(
            loss, self.alpha_parameters, allow_unused=True, materialize_grads=True
        )

    def _architecture_step(self, train: Batch, valid: Batch) -> Metrics:
        with self._without_trace():
            metrics, gradients = self.hypergradient(train, valid)
        return metrics | self._update_alphas(gradients)

    def _weight_step(self, train: Batch) -> Metrics:
        with self._weight_update():
            # Gates without a gradient: nothing of the training loss falls on the alphas.
            loss, _, metrics = self._evaluate("train", train, softmax_gates(self._logits()))
            loss.backward()
        return metrics
