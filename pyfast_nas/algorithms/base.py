"""What every search algorithm offers, and what those that train a shared-weight supernet share.

The loop, the data, logging and files are the engine's. Here are the protocol, and the weights'
optimizer with the defaults of the DARTS code.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.algorithms.options import Range, check_options
from pyfast_nas.errors import ConfigError, DivergenceError
from pyfast_nas.nn import Supernet
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.spaces.base import Genotype, SearchSpace
from pyfast_nas.typing import Alphas, Batch, LossFn, Metrics

__all__ = [
    "SearchAlgorithm",
    "SharedWeightSearch",
    "average",
    "cosine",
]


@runtime_checkable
class SearchAlgorithm(Protocol):
    """What a search loop needs of an algorithm: ours satisfy it, and any other may.

    Example:
        >>> from pyfast_nas.algorithms import DARTS
        >>> isinstance(DARTS(), SearchAlgorithm), isinstance("darts", SearchAlgorithm)
        (True, False)
    """

    name: ClassVar[str]

    def prepare(
        self,
        supernet: Supernet,
        *,
        space: SearchSpace,
        epochs: int,
        steps_per_epoch: int,
        generator: torch.Generator | None = None,
        loss: LossFn = F.cross_entropy,
    ) -> None:
        """Take the supernet to search and make the optimizers."""

    def step(self, train: Batch, valid: Batch) -> Metrics:
        """Make one alternating update; the metrics stay tensors."""

    def derive(self) -> Genotype:
        """Return the discrete architecture as of now."""

    @property
    def alphas(self) -> Alphas:
        """Return a copy of the architecture parameters."""

    def probabilities(self) -> Alphas:
        """Return the row-wise softmax of the architecture parameters."""

    def alarms(self) -> tuple[str, ...]:
        """Return one sentence for each sign that the search is dead."""

    def to_config(self) -> dict[str, Any]:
        """Return name and options as JSON values."""

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside the supernet's own state, continues the search to the bit."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""


@dataclasses.dataclass(kw_only=True, eq=False)
class SharedWeightSearch:
    """A search over a supernet whose weights all architectures share, trained by SGD by default.

    Attributes:
        supernet: The network being searched; set by :meth:`prepare`.
        steps: Whole steps made since :meth:`prepare`.
    """

    name: ClassVar[str]
    weight_lr: Annotated[float, Range(above=0)] = 0.025
    """Learning rate of the weights in the first epoch."""

    weight_lr_min: Annotated[float, Range(at_least=0)] = 0.001
    """Learning rate that the cosine schedule approaches at the end."""

    weight_momentum: Annotated[float, Range(at_least=0, below=1)] = 0.9
    """Momentum of the weights."""

    weight_nesterov: bool = False
    """Whether the momentum of the weights is Nesterov's."""

    weight_decay: Annotated[float, Range(at_least=0)] = 3e-4
    """L2 penalty of the weights (coupled, as in SGD)."""

    gradient_clip: Annotated[float, Range(above=0)] = 5.0
    """Largest global norm of the weight gradient."""

    def __post_init__(self) -> None:
        check_options(self)
        if self.weight_lr_min > self.weight_lr:
            raise ConfigError(
                f"{type(self).__name__}: weight_lr_min must be at most weight_lr="
                f"{self.weight_lr:g}, got {self.weight_lr_min:g}"
            )
        if self.weight_nesterov and not self.weight_momentum:
            raise ConfigError(
                f"{type(self).__name__}: weight_momentum must be greater than 0 with "
                f"weight_nesterov, got {self.weight_momentum:g}"
            )

    def to_config(self) -> dict[str, Any]:
        """Return name and options as JSON values.

        Example:
            >>> from pyfast_nas.algorithms import MSGDAS
            >>> MSGDAS(paths=3).to_config()["paths"]
            3
        """
        options = dataclasses.asdict(self)
        return {"name": self.name} | {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in options.items()
        }

    def prepare(
        self,
        supernet: Supernet,
        *,
        space: SearchSpace,
        epochs: int,
        steps_per_epoch: int,
        generator: torch.Generator | None = None,
        loss: LossFn = F.cross_entropy,
    ) -> None:
        """Take the supernet to search and make the optimizers; called again, start afresh.

        Args:
            supernet: Network of ``space``, on the device where it stays.
            space: Where genotypes come from.
            epochs: Length of the search, for the schedules.
            steps_per_epoch: Calls of :meth:`step` that make one epoch.
            generator: Source of the one seed drawn per step; torch's default one if ``None``.
            loss: ``(outputs, labels) -> scalar``, the mean over the batch.

        Raises:
            ConfigError: If ``epochs`` is not an integer at least 0, ``steps_per_epoch`` at least 1.
        """
        for option, value, least in (
            ("epochs", epochs, 0),
            ("steps_per_epoch", steps_per_epoch, 1),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(
                    f"prepare: {option} must be an integer at least {least}, got {value!r:.200}"
                )
        self.supernet = supernet
        self.space = space
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.generator = generator
        self.loss = loss
        self.steps = 0
        self.loads = 0  # how often a state was put in place of the one that had come about
        self.device = next(iter(supernet.alphas.values())).device
        self.weights = supernet.weight_parameters()
        self.weight_optimizer = self._make_weight_optimizer()
        ops.forget_refusals(self.device)  # those of a search that has diverged

    def _make_weight_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of ``self.weights``; its rate is set before each step."""
        return torch.optim.SGD(
            self.weights,
            momentum=self.weight_momentum,
            weight_decay=self.weight_decay,
            nesterov=self.weight_nesterov,
            **self._rate_options(),
        )

    def _rate_options(self) -> dict[str, Any]:
        """How the weights' optimizer takes its learning rate; here, as a number of the epoch."""
        return {"lr": self.weight_lr, "foreach": True}

    @property
    def epoch(self) -> int:
        """Epoch of the next step, counted from 0; steps past the end stay in the last one."""
        return min(self.steps // self.steps_per_epoch, max(self.epochs - 1, 0))

    @property
    def current_weight_lr(self) -> float:
        """Learning rate of the weights in the next step: a cosine over the epochs."""
        return cosine(self.weight_lr, self.weight_lr_min, self.epoch, self.epochs)

    @property
    def why_not_recorded(self) -> str:
        """Why the device's part of a step is not the same every time, or empty: see StepGraph."""
        return "the host chooses anew in every step what runs"

    @property
    def phase(self) -> tuple[bool, ...]:
        """What the next step does: steps that do other things are warmed up and recorded apart."""
        return ()

    def rehearse(self, batch: Batch) -> str:
        """Return why a recorded step would do otherwise than a step, as far as a pass can show.

        Nothing moves, neither weights nor statistics nor random streams.
        """
        return ""

    def start_step(self) -> None:
        """Set what depends on the epoch, explicitly rather than by the order of scheduler calls."""
        self._require_prepared("step")
        for group in self.weight_optimizer.param_groups:
            group["lr"] = self.current_weight_lr

    def finish_step(self) -> None:
        """Count the step that was made."""
        self.steps += 1

    def _require_prepared(self, method: str) -> None:
        if not hasattr(self, "weight_optimizer"):
            raise RuntimeError(
                f"{type(self).__name__}.{method}: call prepare(supernet, space=..., epochs=..., "
                "steps_per_epoch=...) first"
            )

    def _evaluate(
        self, split: str, batch: Batch, gates: dict[str, GateOutput]
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Run one batch through the supernet: loss, outputs, and both as metrics of ``split``.

        Raises:
            ValueError: If the loss function returns anything but a scalar that can be
                differentiated.
        """
        inputs, labels = batch
        outputs = self.supernet(inputs, gates)
        loss = self.loss(outputs, labels)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss: must return a tensor of shape [], got {shape}")
        if torch.is_grad_enabled() and not loss.requires_grad and self._weights_learn:
            raise ValueError("loss: must return a tensor with a gradient, it does not require grad")
        metrics: Metrics = {f"{split}/loss": loss.detach()}
        if outputs.dim() == 2 and labels.dim() == 1 and not labels.is_floating_point():
            hits = outputs.detach().argmax(dim=1) == labels
            metrics[f"{split}/accuracy"] = hits.float().mean()
        return loss, outputs, metrics

    @property
    def _weights_learn(self) -> bool:
        """Whether this is a pass for the weights, too, rather than for the alphas alone."""
        return any(weight.requires_grad for weight in self.weights)

    @contextlib.contextmanager
    def _weight_update(self, step: Callable[[], None] | None = None) -> Iterator[None]:
        """Clear weight gradients, let the body run backward, then clip and step.

        Cleared to ``None``: weights that get no gradient in the body, those of candidates that
        did not run, are moved by neither momentum nor decay. After an error nothing moves.

        Args:
            step: In place of the optimizer's own step.
        """
        self.weight_optimizer.zero_grad(set_to_none=True)
        yield
        torch.nn.utils.clip_grad_norm_(self.weights, self.gradient_clip, foreach=True)
        (step or self.weight_optimizer.step)()

    @property
    def alphas(self) -> Alphas:
        """A copy of the architecture parameters, table name -> ``[rows, num_ops]``.

        Empty before :meth:`prepare`.
        """
        tables = self.supernet.alphas if hasattr(self, "supernet") else {}
        return {table: alpha.detach().clone() for table, alpha in tables.items()}

    def probabilities(self) -> Alphas:
        """Return the probability of every candidate, zero where a shorter row has none."""
        self._require_prepared("probabilities")
        return {table: logits.softmax(dim=-1) for table, logits in self._logits().items()}

    def derive(self) -> Genotype:
        """Return the discrete architecture as of now.

        Raises:
            DivergenceError: If an architecture parameter is not finite.
            RuntimeError: If :meth:`prepare` was not called.
        """
        self._require_prepared("derive")
        self._require_finite_alphas("derive")
        return self.space.derive(self._logits())

    def _require_finite_alphas(self, method: str) -> None:
        for table, alpha in self.alphas.items():
            if len(bad := (~alpha.isfinite()).nonzero()):
                row, candidate = bad[0].tolist()
                raise DivergenceError(
                    f"{method}: alphas[{table!r}] must be finite, got {alpha[row, candidate]:g} "
                    f"at row {row}, candidate {candidate} after step {self.steps}"
                )

    def _logits(self) -> dict[str, Tensor]:
        """Logits without a gradient, minus infinity where a shorter row has no candidate."""
        return {table: logits.detach() for table, logits in self.supernet.logits().items()}

    def alarms(self) -> tuple[str, ...]:
        """Return one sentence for each sign that the search is dead; waits for the device."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside ``supernet.state_dict()``, continues the search to the bit.

        The global random state is the caller's, as are the positions of the data loaders.
        """
        self._require_prepared("state_dict")
        state = {
            "name": self.name,
            "steps": self.steps,
            "weight_optimizer": self.weight_optimizer.state_dict(),
        }
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, after :meth:`prepare`.

        Raises:
            ConfigError: If the state is another algorithm's.
            RuntimeError: If :meth:`prepare` was not called.
        """
        self._require_prepared("load_state_dict")
        if state["name"] != self.name:
            raise ConfigError(
                f"load_state_dict: state must be of {self.name!r}, got {state['name']!r:.200}"
            )
        self.steps = state["steps"]
        self.loads += 1
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        if self.generator is not None and "generator" in state:
            self.generator.set_state(state["generator"])


def cosine(start: float, end: float, epoch: int, epochs: int) -> float:
    """Return the cosine schedule's value at an epoch: ``start`` at 0, towards ``end`` at the last.

    Example:
        >>> round(cosine(0.025, 0.001, 1, 50), 8), round(cosine(0.025, 0.001, 49, 50), 8)
        (0.02497632, 0.00102368)
    """
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * epoch / max(epochs, 1)))


def average(passes: Sequence[Metrics]) -> Metrics:
    """Return the mean of metrics that several passes of one step gave, key by key.

    Example:
        >>> average([{"train/loss": 1.0}, {"train/loss": 3.0}])
        {'train/loss': 2.0}
    """
    return {key: sum(metrics[key] for metrics in passes) / len(passes) for key in passes[0]}
