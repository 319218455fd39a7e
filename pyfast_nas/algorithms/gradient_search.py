"""What algorithms share that move architecture parameters along a gradient.

The optimizer of the architecture parameters with the defaults of the DARTS paper, and the rule
that an architecture step leaves no trace but them.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from pyfast_nas.algorithms.base import SharedWeightSearch
from pyfast_nas.algorithms.options import Range
from pyfast_nas.nn import GateOutput, Softmax, Supernet, frozen_statistics
from pyfast_nas.nn.replay import random_states
from pyfast_nas.typing import Alphas, Metrics

__all__ = ["GradientSearch", "softmax_gates"]


@dataclasses.dataclass(kw_only=True, eq=False)
class GradientSearch(SharedWeightSearch):
    """A search that moves architecture parameters along a gradient, by Adam."""

    alpha_lr: Annotated[float, Range(above=0)] = 3e-4
    """Learning rate of the architecture parameters."""

    alpha_betas: Annotated[tuple[float, float], Range(at_least=0, below=1)] = (0.5, 0.999)
    """Adam's decay rates of the architecture parameters."""

    alpha_decay: Annotated[float, Range(at_least=0)] = 1e-3
    """L2 penalty of the architecture parameters (coupled, as in Adam)."""

    # Architecture steps in a row whose gradient may vanish before alarms() says so.
    patience: ClassVar[int] = 50

    _watches: ClassVar[bool] = False
    _has_drawn: ClassVar[bool] = False

    def prepare(self, supernet: Supernet, **run: Any) -> None:
        """Take the supernet to search and make both optimizers; see the base class."""
        super().prepare(supernet, **run)
        self.alpha_parameters = supernet.arch_parameters()
        self.alpha_optimizer = torch.optim.Adam(
            self.alpha_parameters,
            lr=self.alpha_lr,
            betas=self.alpha_betas,
            weight_decay=self.alpha_decay,
            foreach=True,
            # Its count of steps stands on the device, for a CUDA graph to move on.
            capturable=self.device.type == "cuda",
        )
        self.first_alphas = self.alphas
        self.alpha_steps = 0
        self.idle_steps = torch.zeros((), dtype=torch.int64, device=self.device)

    @contextlib.contextmanager
    def _without_trace(self) -> Iterator[None]:
        """Let passes through the supernet leave statistics and random streams as they were."""
        is_cuda = self.device.type == "cuda"
        # While a CUDA graph is recorded no stream may be asked; StepGraph has seen that none moves.
        devices = [self.device] if is_cuda and not torch.cuda.is_current_stream_capturing() else []
        with torch.random.fork_rng(devices), frozen_statistics(self.supernet), self._noting_draws():
            yield

    @contextlib.contextmanager
    def _noting_draws(self) -> Iterator[None]:
        """Notice where random streams are moved inside, while somebody watches for it."""
        before = random_states(self.device) if self._watches else []
        yield
        if self._watches:
            self._has_drawn |= not all(map(torch.equal, before, random_states(self.device)))

    @contextlib.contextmanager
    def watching_draws(self) -> Iterator[Callable[[], bool]]:
        """Yield what says whether an architecture step inside of the block drew random numbers."""
        self._watches, self._has_drawn = True, False
        try:
            yield lambda: self._has_drawn
        finally:
            self._watches = False

    def _update_alphas(self, gradients: Sequence[Tensor]) -> Metrics:
        """Make one step of Adam along ``gradients``, one tensor per architecture parameter."""
        norm = torch.stack(torch._foreach_norm(list(gradients))).norm()
        # Counted on the device: the host asks in alarms(), not in every step.
        self.idle_steps.add_(1).mul_(norm == 0)
        for alpha, gradient in zip(self.alpha_parameters, gradients, strict=True):
            alpha.grad = gradient
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)
        return {"alpha/gradient_norm": norm}

    def alarms(self) -> tuple[str, ...]:
        """Return one sentence for each sign that the search is dead; waits for the device.

        A gradient that vanishes for :attr:`patience` architecture steps in a row, architecture
        parameters that are still where they started, or a search that ends before they move.
        """
        found = []
        if (idle := int(self.idle_steps)) >= self.patience:
            found.append(
                f"the architecture gradient was exactly zero in the last {idle} steps: "
                "nothing connects the loss to the architecture parameters"
            )
        if self.alpha_steps and all(
            torch.equal(now, self.first_alphas[table]) for table, now in self.alphas.items()
        ):
            found.append(
                f"the architecture parameters did not move in {self.alpha_steps} architecture steps"
            )
        if 0 < self.epochs * self.steps_per_epoch <= self.steps and not self.alpha_steps:
            found.append(
                f"no architecture step was made in {self.steps} steps: search for longer, or "
                "shorten what comes before the architecture moves"
            )
        return tuple(found)

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside ``supernet.state_dict()``, continues the search to the bit."""
        return super().state_dict() | {
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "alpha_steps": self.alpha_steps,
            "first_alphas": dict(self.first_alphas),
            "idle_steps": self.idle_steps.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, after :meth:`prepare`."""
        super().load_state_dict(state)
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.alpha_steps = state["alpha_steps"]
        self.first_alphas = {t: a.to(self.device) for t, a in state["first_alphas"].items()}
        self.idle_steps = state["idle_steps"].to(self.device).clone()


def softmax_gates(logits: Alphas) -> dict[str, GateOutput]:
    """Return the gates that run every candidate, weighted by the softmax of its row."""
    gate = Softmax()
    return {table: gate(rows) for table, rows in logits.items()}
