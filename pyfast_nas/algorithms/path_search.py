"""What searches share that run drawn single-path sub-graphs: only what is drawn runs and moves.

A step runs what the host was told was drawn. The same step as work that is the same every time, for
a CUDA graph, leaves the choice on the device: :meth:`PathSearch.run_step`.
"""

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.algorithms.gradient_search import GradientSearch
from pyfast_nas.algorithms.masked_step import MaskedStep
from pyfast_nas.algorithms.sub_graphs import SubGraphs, draw_sub_graphs
from pyfast_nas.nn import Supernet
from pyfast_nas.typing import Alphas, Batch, Metrics

__all__ = ["PathSearch"]


@dataclasses.dataclass(kw_only=True, eq=False)
class PathSearch(GradientSearch):
    """A search that trains the weights of the candidates it draws, one of each row.

    Each step draws one seed from the generator; the architecture pass samples at its offset, the
    weight pass at the next. A subclass says what moves the architecture, in `_architecture_step`,
    and may say when, in `moves_alphas`, and what is drawn, in `_sampling` or `_draw`.
    """

    def prepare(self, supernet: Supernet, **run: Any) -> None:
        """Take the supernet to search and make both optimizers; see the base class."""
        super().prepare(supernet, **run)
        self.masked_step = MaskedStep(supernet, self.weight_optimizer)
        # Drawn before each step, never inside of one.
        self.seed = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.next_call = torch.tensor([0, 1], device=self.device)  # seed stays, offset advances

    @property
    def why_not_recorded(self) -> str:
        """Why no step can be recorded, or empty: see StepGraph."""
        return self.masked_step.reason

    @property
    def moves_alphas(self) -> bool:
        """Whether the next step moves the architecture."""
        return True

    @property
    def phase(self) -> tuple[bool, ...]:
        """Whether the next step moves the architecture."""
        return (self.moves_alphas,)

    @property
    def tau(self) -> float:
        """Temperature of the relaxed weights; none where nothing is relaxed."""
        return 1.0

    def _epochs_of(self, share: float) -> int:
        # The small addend keeps 0.3 * 10 epochs at 3 whatever the last bit of the product.
        return math.floor(share * self.epochs + 1e-9)

    def _is_early(self, share: float) -> bool:
        return self.epoch < self._epochs_of(share)

    def step(self, train: Batch, valid: Batch) -> Metrics:
        """Make one architecture step on ``valid``, then one weight step on ``train``.

        While the architecture parameters rest, ``valid`` is not looked at and the metrics of its
        pass are absent.
        """
        self.start_step()
        metrics = self._make_step(train, valid, on_device=False)
        self.finish_step()
        return metrics

    def run_step(self, train: Batch, valid: Batch) -> Metrics:
        """Do the device's part of a step: the same work every time, and the same numbers.

        Every candidate is launched, and those that were not drawn end at once.
        """
        return self._make_step(train, valid, on_device=True)

    def rehearse(self, batch: Batch) -> str:
        """Return why a recorded step would do otherwise than a step, as far as a pass can show."""
        with self.watching_draws() as has_drawn, self._without_trace(), torch.no_grad():
            drawn = self._draw(self._logits(), self.seed, on_device=True)
            self.supernet(batch[0], drawn.gates(0))
        return "the supernet draws random numbers" if has_drawn() else ""

    def start_step(self) -> None:
        """Set what depends on the epoch, and draw the seed of the step."""
        super().start_step()
        self.seed.copy_(ops.draw_seed(self.generator, self.device))

    def finish_step(self) -> None:
        """Count the step that was made."""
        self.alpha_steps += self.moves_alphas
        super().finish_step()

    def _make_step(self, train: Batch, valid: Batch, on_device: bool) -> Metrics:
        metrics = self._schedules()
        if self.moves_alphas:
            metrics |= self._architecture_step(valid, on_device)
        return metrics | self._weight_step(train, on_device)

    def _schedules(self) -> Metrics:
        """Return what depends on the epoch, as metrics."""
        return {}

    def _architecture_step(self, valid: Batch, on_device: bool) -> Metrics:
        """Move the alphas, and leave no trace but that; draws come from ``self.seed``."""
        raise NotImplementedError

    def _weight_step(self, train: Batch, on_device: bool) -> Metrics:
        seed = self.seed + self.next_call
        drawn = self._draw(self._logits(), seed, on_device)
        masked = functools.partial(self.masked_step.step, drawn.ran()) if on_device else None
        with self._weight_update(masked):
            metrics = self._run_backward(train, drawn, seed)
            if not on_device:
                self.masked_step.fill(drawn.picks)
        return metrics

    def _run_backward(self, train: Batch, drawn: SubGraphs, seed: Tensor) -> Metrics:
        """Give the weights of what was drawn the gradients of the training loss."""
        loss, _, metrics = self._evaluate("train", train, drawn.gates(0))
        loss.backward()
        return metrics

    @property
    def _sampling(self) -> dict[str, Any]:
        """How sub-graphs are drawn: arguments of `draw_sub_graphs`."""
        return {"paths": 1}

    def _draw(self, logits: Alphas, seed: Tensor, on_device: bool, **other: Any) -> SubGraphs:
        """Draw what a pass of a step runs; ``other`` is what is not as `_sampling` says."""
        sampling = self._sampling | other
        try:
            return draw_sub_graphs(logits, tau=self.tau, seed=seed, on_device=on_device, **sampling)
        except ValueError:
            # Where the host can look at what was drawn, NaN is refused: the search has diverged.
            self._require_finite_alphas("step")
            raise
