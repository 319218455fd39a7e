r"""UNAS: one unbiased estimator for costs with and without a derivative.

Vahdat, Mallya, Liu & Kautz, "UNAS: Differentiable Architecture Search Meets Reinforcement
Learning", CVPR 2020, arXiv 1912.07651.

As printed: the estimator (see `rebar`); the loss with the generalization gap in it, on the
batch that the weights are trained on and one that they are not,

.. math:: L(z) = L_{tr}(z) + \lambda\, |L_{val}(z) - L_{tr}(z)| \quad (2)

a cost above a target as a second term with a draw and a linear surrogate of its own. As in the
authors' code: weights trained with the relaxed choices rather than with the drawn ones, the
constants of both optimizers, the temperature, the weight of the gap, the share of the epochs
before the architecture moves, softened logits.

Ours: the gap of the batches' means by default (the code's is sample by sample); uniforms are not
clamped, and a discrete network is the arg-max (the code's softmax can mix two); one architecture a
batch in every space; the cost's warm-up as a share of the steps; a baseline; weights are trained
on a draw of their own.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.algorithms.base import cosine
from pyfast_nas.algorithms.drawn_cost import DrawnCost
from pyfast_nas.algorithms.gradient_search import GradientSearch
from pyfast_nas.algorithms.options import Range, require_read
from pyfast_nas.algorithms.rebar import CoupledDraw, coupled_draw, soften, surrogate_loss
from pyfast_nas.algorithms.sub_graphs import single_path_gates, stack_tables, unstack_tables
from pyfast_nas.errors import ConfigError
from pyfast_nas.nn import GateOutput, Supernet
from pyfast_nas.typing import Alphas, Batch, Metrics

__all__ = ["UNAS"]


@dataclasses.dataclass(kw_only=True, eq=False)
class UNAS(DrawnCost, GradientSearch):
    """UNAS; the equations stand at the top of this module and of `rebar`.

    Each step draws one seed from the generator; the architecture pass samples at its offset, the
    weight pass at the next, the cost at the one after. :meth:`prepare` sets all logits to zero.

    Attributes:
        criterion: What a discrete architecture costs, as a function of its genotype that needs no
            derivative; set before :meth:`prepare`. None takes the cost that ``cost`` names.

    Example:
        >>> import torch
        >>> from pyfast_nas import spaces
        >>> space = spaces.Toy()
        >>> algorithm = UNAS(cost_weight=1.0)
        >>> algorithm.criterion = lambda genotype: len({e.op for e in genotype.cells["cell"]})
        >>> algorithm.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=2)
        >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
        >>> metrics = algorithm.step(batch, batch)
        >>> "gap" in metrics, metrics["cost"] in (1.0, 2.0)
        (True, True)

    References:
        Vahdat et al., CVPR 2020. Tucker et al., NeurIPS 2017 (REBAR).
    """

    name: ClassVar[str] = "unas"

    weight_lr: Annotated[float, Range(above=0)] = 3e-4
    """Learning rate of the weights in the first epoch."""

    weight_lr_min: Annotated[float, Range(at_least=0)] = 1e-4
    """Learning rate that the cosine schedule approaches at the end."""

    weight_momentum: Annotated[float, Range(at_least=0, below=1)] = 0.9
    """Momentum of the weights: the decay of Adam's first moment."""

    alpha_lr: Annotated[float, Range(above=0)] = 1e-3
    """Learning rate of the architecture parameters in the first epoch."""

    alpha_lr_min: Annotated[float, Range(at_least=0)] = 3e-4
    """Learning rate that their cosine schedule approaches at the end."""

    alpha_betas: Annotated[tuple[float, float], Range(at_least=0, below=1)] = (0.9, 0.999)
    """Adam's decay rates of the architecture parameters."""

    alpha_decay: Annotated[float, Range(at_least=0)] = 1e-6
    """L2 penalty of the architecture parameters (coupled, as in Adam)."""

    alpha_warmup: Annotated[float, Range(at_least=0, at_most=1)] = 0.15
    """Share of the epochs before the architecture parameters start to move."""

    tau: Annotated[float, Range(above=0)] = 0.4
    """Temperature of the relaxed choices."""

    softening: Annotated[float, Range(at_least=0)] = 0.0
    """What every probability gains before a draw, so that no candidate dies out."""

    gap: Literal["batch", "samplewise"] = "batch"
    """Gap of the batches' mean losses, or the mean over pairs of their samples."""

    gap_weight: Annotated[float, Range(at_least=0)] = 0.5
    """Weight of the generalization gap in the loss; 0 takes the training loss alone."""

    control_scale: Annotated[float, Range(at_least=0)] = 1.0
    """Factor of the differentiable surrogates in the estimate; 0 leaves the score function."""

    score_baseline: Annotated[float, Range(at_least=0, below=1)] = 0.0
    """Decay of the moving average of earlier advantages that is subtracted; 0 subtracts none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_read(self, {"gap": self.gap_weight > 0}, f"gap_weight={self.gap_weight:g}")
        if self.alpha_lr_min > self.alpha_lr:
            raise ConfigError(
                f"UNAS: alpha_lr_min must be at most alpha_lr={self.alpha_lr:g}, "
                f"got {self.alpha_lr_min:g}"
            )
        if self.weight_nesterov:
            raise ConfigError(
                "UNAS: weight_nesterov must be false, since Adam moves the weights, got True"
            )

    def prepare(self, supernet: Supernet, **run: Any) -> None:
        """Take the supernet to search, set its logits to zero, make both optimizers.

        Raises:
            ConfigError: If the costs cannot be found; see `DrawnCost.prepare`.
        """
        super().prepare(supernet, **run)
        with torch.no_grad():
            for logits in self.alpha_parameters:
                logits.zero_()
        self.first_alphas = self.alphas
        self.seed = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.next_call = torch.tensor([0, 1], device=self.device)  # seed stays, offset advances
        # Of the accuracy and of the cost: a decayed sum of advantages, and of its weights.
        self.baselines = torch.zeros(2, 2, dtype=torch.float64, device=self.device)

    @property
    def _wants_surrogate(self) -> bool:
        return self.control_scale > 0

    def _make_weight_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            self.weights,
            lr=self.weight_lr,
            betas=(self.weight_momentum, 0.999),
            weight_decay=self.weight_decay,
            foreach=True,
        )

    @property
    def moves_alphas(self) -> bool:
        """Whether the next step moves the architecture."""
        return self.epoch >= self._first_epoch

    @property
    def _first_epoch(self) -> int:
        # The small addend keeps 0.15 * 20 epochs at 3 whatever the last bit of the product.
        return math.floor(self.alpha_warmup * self.epochs + 1e-9)

    @property
    def current_cost_weight(self) -> float:
        """Weight of the cost in this step: it rises from 0 as the architecture moves."""
        steps = max(self.epochs - self._first_epoch, 0) * self.steps_per_epoch
        rise = self.cost_warmup * steps
        return self.cost_weight * (min(self.alpha_steps / rise, 1.0) if rise else 1.0)

    def step(self, train: Batch, valid: Batch) -> Metrics:
        """Make one architecture step on both batches, then one weight step on ``train``.

        While the architecture parameters rest, ``valid`` is not looked at and the metrics of its
        pass are absent.
        """
        self.start_step()
        moves = self.moves_alphas
        metrics = self._architecture_step(train, valid) if moves else {}
        metrics |= self._weight_step(train)
        self.alpha_steps += moves
        self.finish_step()
        return metrics

    def start_step(self) -> None:
        """Set what depends on the epoch, and draw the seed of the step."""
        super().start_step()
        for group in self.alpha_optimizer.param_groups:
            group["lr"] = cosine(self.alpha_lr, self.alpha_lr_min, self.epoch, self.epochs)
        self.seed.copy_(ops.draw_seed(self.generator, self.device))

    def _architecture_step(self, train: Batch, valid: Batch) -> Metrics:
        baselines = self.baselines.clone()
        with self._without_trace(), self._resting_weights():
            loss, metrics = self._gap_term(train, valid, baselines[0])
            if self.cost_table is not None or self.criterion is not None:
                term, found = self._cost_term(baselines[1])
                loss, metrics = loss + term, metrics | found
            gradients = torch.autograd.grad(loss, self.alpha_parameters)
        self.baselines.copy_(baselines)
        return metrics | self._update_alphas(gradients)

    @contextlib.contextmanager
    def _resting_weights(self) -> Iterator[None]:
        """Let no weight require a gradient: fused operators look at that, not at the call."""
        idle = [weight for weight in self.weights if weight.requires_grad]
        try:
            for weight in idle:
                weight.requires_grad_(False)
            yield
        finally:
            for weight in idle:
                weight.requires_grad_(True)

    def _gap_term(self, train: Batch, valid: Batch, baseline: Tensor) -> tuple[Tensor, Metrics]:
        """Return the estimate of (2): the drawn network without a gradient, the relaxed with."""
        draw = self._draw(self.supernet.logits(), 0)
        with torch.no_grad():
            cost, metrics = self._objective(train, valid, self._drawn_gates(draw))
        control = torch.zeros_like(cost)
        if self.control_scale:
            control, _ = self._objective(train, valid, self._relaxed_gates(draw.combined))
        return self._estimate(draw, cost, control, baseline), metrics

    def _cost_term(self, baseline: Tensor) -> tuple[Tensor, Metrics]:
        """Return the estimate for what a drawn network costs."""
        draw = self._draw(self.supernet.logits(), 2)
        price = self.price(unstack_tables(draw.flags, self.supernet.alphas))
        cost = self.penalty(torch.full_like(draw.log_prob, price), self.current_cost_weight)
        control = torch.zeros_like(cost)
        if self.control_scale:
            weights = unstack_tables(draw.combined, self.supernet.alphas)
            control = self.penalty(self.cost_table.expected(weights), self.current_cost_weight)
        return self._estimate(draw, cost, control, baseline), {"cost": price}

    def _estimate(
        self, draw: CoupledDraw, cost: Tensor, control: Tensor, baseline: Tensor
    ) -> Tensor:
        """Return the surrogate loss, above the mean of earlier draws, and count this one in."""
        total, weight = baseline
        mean = (total / weight.clamp(min=1e-12)).to(cost.dtype)
        loss = surrogate_loss(draw, cost, control, scale=self.control_scale, baseline=mean)
        if decay := self.score_baseline:
            advantage = (cost - self.control_scale * control).detach()
            baseline.mul_(decay).add_(
                torch.stack([advantage, torch.ones_like(advantage)]), alpha=1 - decay
            )
        return loss

    def _objective(
        self, train: Batch, valid: Batch, gates: dict[str, GateOutput]
    ) -> tuple[Tensor, Metrics]:
        loss, outputs, _ = self._evaluate("train", train, gates)
        other_loss, other_outputs, metrics = self._evaluate("valid", valid, gates)
        if self.gap == "batch":
            gap = (other_loss - loss).abs()
        else:
            each, other = self._each(outputs, train[1]), self._each(other_outputs, valid[1])
            pairs = min(len(each), len(other))
            gap = (other[:pairs] - each[:pairs]).abs().mean()
        return loss + self.gap_weight * gap, metrics | {"gap": gap.detach()}

    def _each(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every sample, as that of a batch of one."""
        one = torch.vmap(lambda output, label: self.loss(output.unsqueeze(0), label.unsqueeze(0)))
        return one(outputs, labels)

    def _weight_step(self, train: Batch) -> Metrics:
        draw = self._draw(self._logits(), 1)
        with self._weight_update():
            loss, _, metrics = self._evaluate("train", train, self._relaxed_gates(draw.relaxed))
            loss.backward()
        return metrics

    def _draw(self, logits: Alphas, call: int) -> CoupledDraw:
        """Draw one architecture, with the noise of the step's ``call``."""
        stacked = stack_tables({t: soften(rows, self.softening) for t, rows in logits.items()})
        uniforms = ops.philox_uniform(self.seed + call * self.next_call, *stacked.shape)
        try:
            return coupled_draw(stacked, uniforms, self.tau)
        except ValueError:
            # It refuses NaN: then the search has diverged.
            self._require_finite_alphas("step")
            raise

    def _relaxed_gates(self, weights: Tensor) -> dict[str, GateOutput]:
        parts = unstack_tables(weights, self.supernet.alphas)
        alphas = self.supernet.alphas
        return {table: GateOutput(rows.to(alphas[table].dtype)) for table, rows in parts.items()}

    def _drawn_gates(self, draw: CoupledDraw) -> dict[str, GateOutput]:
        rows = {table: len(alpha) for table, alpha in self.supernet.alphas.items()}
        ones = torch.ones_like(draw.relaxed[:, 0])
        return single_path_gates(rows, draw.picks.tolist(), ones)

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside ``supernet.state_dict()``, continues the search to the bit."""
        return super().state_dict() | {"baselines": self.baselines.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, after :meth:`prepare`."""
        super().load_state_dict(state)
        self.baselines.copy_(state["baselines"])
