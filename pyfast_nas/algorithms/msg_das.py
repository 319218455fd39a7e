r"""MSG-DAS: search with several mutually exclusive single-path sub-graphs per step.

Tan, Guo, Zhong, Scott & Huang, "Mutually-aware Sub-Graphs Differentiable Architecture Search",
arXiv 2107.04324.

From the paper's abstract and opening: a differentiable Gumbel-TopK sampler draws several mutually
exclusive single-path sub-graphs; skip connections become DropBlock-Identity; the supernet teaches
its sub-graphs without holding all candidates in memory. The paper's equations, constants and code
are not public, so everything below that level is this project's definition, chosen such that one
path is exactly GDAS (Dong & Yang, CVPR 2019, single-path form) and every piece can be switched off:

* K candidates per row are drawn by one Gumbel-TopK call for all rows; ranks are dealt out to
  sub-graphs as they are or shuffled per row; the sub-graphs' losses are averaged.
* The gradient of a row's logits is that of a straight-through factor on the executed candidate,
  through one shared softmax (1), the Plackett-Luce sequence of softmaxes (2), or the relaxed subset
  of Xie & Ermon (IJCAI 2019), the same sequence with a soft mask; or it is the unbiased
  score-function estimate (3).

  With gate gradients :math:`c_k = \langle \partial L/\partial y, y\rangle` of the executed
  candidates :math:`s_k`, and :math:`q` the softmax of perturbed logits over :math:`\tau`:

  .. math::
      (1)\quad \partial L/\partial\alpha_j &= \tfrac1\tau \sum_k c_k\, q_{s_k}
               (\delta_{j s_k} - q_j) \\
      (2)\quad \partial L/\partial\alpha_j &= \tfrac1\tau \sum_k c_k\, q^{(k)}_{s_k}
               (\delta_{j s_k} - q^{(k)}_j) \\
      (3)\quad \widehat{\nabla}\alpha_j &= (L - b) \sum_k \Big([j = s_k] - [j \notin S_{<k}]
               \frac{p_j}{\sum_{i \notin S_{<k}} p_i}\Big)

* Optimizers are those of the DARTS code, the temperature is GDAS's, the logits rest for the first
  epochs as in PC-DARTS, all in proportion to the epochs.
* Statistics of a layer that all sub-graphs share are counted once a step, from the first of them.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from pyfast_nas.algorithms.base import average
from pyfast_nas.algorithms.distillation import distillation_loss, teacher_outputs
from pyfast_nas.algorithms.options import Range, require_read
from pyfast_nas.algorithms.path_search import PathSearch
from pyfast_nas.algorithms.sub_graphs import (
    Assignment,
    SubGraphs,
    plackett_luce_log_prob,
    shared_statistics,
    stack_tables,
)
from pyfast_nas.algorithms.temperature import TemperedSearch
from pyfast_nas.errors import ConfigError
from pyfast_nas.nn import Supernet, frozen_statistics
from pyfast_nas.nn.drop_block import DropBlocks
from pyfast_nas.typing import Batch, Metrics

__all__ = ["MSGDAS"]


@dataclasses.dataclass(kw_only=True, eq=False)
class MSGDAS(TemperedSearch, PathSearch):
    """Mutually-aware sub-graphs search; the equations stand at the top of the module.

    Example:
        >>> import torch
        >>> from pyfast_nas import spaces
        >>> space = spaces.Toy()
        >>> algorithm = MSGDAS(paths=2, alpha_warmup=0.0)
        >>> algorithm.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=2)
        >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
        >>> metrics = algorithm.step(batch, batch)
        >>> metrics["tau"], "valid/loss" in metrics
        (10.0, True)

    References:
        Tan et al., arXiv 2107.04324. Kool, van Hoof & Welling, ICML 2019 (sampler). Dong & Yang,
        CVPR 2019 (straight-through form). Ghiasi, Lin & Le, NeurIPS 2018 (DropBlock).
    """

    name: ClassVar[str] = "msg-das"

    paths: Annotated[int, Range(at_least=1)] = 2
    """Sub-graphs drawn per step (K), at most the candidates of a row."""

    mode: Literal["accumulate", "joint"] = "accumulate"
    """Run sub-graphs one after another (memory of one), or keep all their graphs (memory of K)."""

    assignment: Assignment = "rank"
    """Sub-graph k takes the k-th drawn candidate of every row, or each row shuffles."""

    relaxation: Literal["shared", "conditional", "subset", "score"] = "shared"
    """Gradient of the logits: one softmax, one per rank, relaxed subset, or score function."""

    score_baseline: Annotated[float, Range(at_least=0, below=1)] = 0.0
    """Decay of the moving average of losses that the score function subtracts; 0 subtracts none."""

    alpha_warmup: Annotated[float, Range(at_least=0, at_most=1)] = 0.3
    """Share of the epochs before the architecture parameters start to move."""

    drop_rate: Annotated[float, Range(at_least=0, below=1)] = 0.3
    """DropBlock rate on skip connections at the start; 0 switches it off."""

    drop_schedule: Literal["linear", "constant", "exp"] = "linear"
    """How the DropBlock rate falls: to 0 at the end, not at all, or by exp(-0.2) an epoch."""

    drop_block: Annotated[int | None, Range(at_least=1, odd=True)] = None
    """Side of a dropped block; by default 3 for images up to 32 pixels high, else 7."""

    kd_weight: Annotated[float, Range(at_least=0)] = 1.0
    """Weight of the supernet's guidance in the loss; 0 switches it off."""

    kd_temperature: Annotated[float, Range(above=0)] = 1.0
    """Temperature that softens both predictions of the guidance."""

    kd_warmup: Annotated[float, Range(at_least=0, at_most=1)] = 0.1
    """Share of the epochs before the guidance starts."""

    kd_in_alpha_step: bool = False
    """Whether the guidance is part of the architecture's loss too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # The score function of a draw has no temperature, and nothing else subtracts a baseline.
        scores = self.relaxation == "score"
        read = {"score_baseline": scores, "tau_max": not scores, "tau_min": not scores}
        require_read(self, read, f"relaxation={self.relaxation!r}")
        drops = dict.fromkeys(("drop_schedule", "drop_block"), self.drop_rate > 0)
        require_read(self, drops, f"drop_rate={self.drop_rate:g}")
        of_guidance = ("kd_temperature", "kd_warmup", "kd_in_alpha_step")
        guides = dict.fromkeys(of_guidance, self.kd_weight > 0)
        require_read(self, guides, f"kd_weight={self.kd_weight:g}")

    def prepare(self, supernet: Supernet, **run: Any) -> None:
        """Take the supernet to search, equip its skip connections, make both optimizers.

        Raises:
            ConfigError: If a row of the supernet has fewer than ``paths`` candidates.
        """
        shortest = min(len(row) for rows in supernet.candidates.values() for row in rows)
        if self.paths > shortest:
            raise ConfigError(
                f"MSGDAS: paths must be at most the candidates of every row, {shortest}, "
                f"got {self.paths}"
            )
        super().prepare(supernet, **run)
        self.drop_blocks = DropBlocks(supernet)
        self.shared_layers = shared_statistics(supernet)
        # One group is one backward pass.
        ranks = range(self.paths)
        self.groups = [[k] for k in ranks] if self.mode == "accumulate" else [list(ranks)]
        self.baseline = torch.zeros_like(self.alpha_parameters[0][0, 0].detach())
        self.baseline_weight = torch.zeros_like(self.baseline)

    @property
    def moves_alphas(self) -> bool:
        """Whether this epoch's steps move the architecture."""
        return not self._is_early(self.alpha_warmup)

    @property
    def phase(self) -> tuple[bool, ...]:
        """Whether this epoch's steps move the architecture, and whether the guidance is on."""
        return *super().phase, bool(self.current_kd_weight)

    @property
    def current_drop_rate(self) -> float:
        """DropBlock rate of this epoch."""
        factor = {
            "linear": 1 - self.epoch / max(self.epochs, 1),
            "constant": 1.0,
            "exp": math.exp(-0.2 * self.epoch),
        }
        return self.drop_rate * factor[self.drop_schedule]

    @property
    def current_kd_weight(self) -> float:
        """Weight of the guidance in this epoch."""
        return 0.0 if self._is_early(self.kd_warmup) else self.kd_weight

    def _schedules(self) -> Metrics:
        tau = {} if self.relaxation == "score" else super()._schedules()
        return tau | {"drop_rate": self.current_drop_rate}

    def _architecture_step(self, valid: Batch, on_device: bool) -> Metrics:
        estimate = self._score_gradient if self.relaxation == "score" else self._path_gradient
        with self._without_trace():
            metrics, gradients = estimate(valid, on_device)
        return metrics | self._update_alphas(gradients)

    def _path_gradient(self, valid: Batch, on_device: bool) -> tuple[Metrics, tuple[Tensor, ...]]:
        """Gate gradients of all sub-graphs, then one backward pass of the sampler: (1) or (2)."""
        drawn = self._draw(self.supernet.logits(), self.seed, on_device)
        gates = [weights.detach().requires_grad_() for weights in drawn.weights.unbind(1)]
        teacher = self._teacher(valid) if self.kd_in_alpha_step else None
        run = _Pass("valid", valid, drawn, self.seed, teacher)
        gate_gradients: list[Tensor] = []
        for group in self.groups:
            # No name for the loss: layers before the first gate free nothing in this backward.
            gate_gradients += torch.autograd.grad(
                self._loss(run, group, gates),
                [gates[k] for k in group],
                allow_unused=True,
                materialize_grads=True,
            )
        gradients = torch.autograd.grad(
            drawn.weights, self.alpha_parameters, torch.stack(gate_gradients, dim=1)
        )
        return average(run.metrics), gradients

    def _score_gradient(self, valid: Batch, on_device: bool) -> tuple[Metrics, tuple[Tensor, ...]]:
        """Loss above the baseline times the score of the draw: (3)."""
        logits = self.supernet.logits()
        drawn = self._draw(self._logits(), self.seed, on_device)
        with torch.no_grad():
            teacher = self._teacher(valid) if self.kd_in_alpha_step else None
            run = _Pass("valid", valid, drawn, self.seed, teacher)
            loss = self._loss(run, range(self.paths))
        # The baseline is of earlier draws only, so that it is independent of this one.
        advantage = loss - self.baseline / self.baseline_weight.clamp(min=1e-12)
        log_prob = plackett_luce_log_prob(stack_tables(logits), drawn.indices).sum()
        gradients = torch.autograd.grad(log_prob, self.alpha_parameters, advantage)
        if decay := self.score_baseline:
            self.baseline.copy_(decay * self.baseline + (1 - decay) * loss)
            self.baseline_weight.copy_(decay * self.baseline_weight + (1 - decay))
        return average(run.metrics), gradients

    def _run_backward(self, train: Batch, drawn: SubGraphs, seed: Tensor) -> Metrics:
        run = _Pass("train", train, drawn, seed, self._teacher(train))
        for group in self.groups:
            self._loss(run, group).backward()
        return average(run.metrics)

    @property
    def _sampling(self) -> dict[str, Any]:
        # With one path all softmaxes are the same; asking for one of them keeps the bits too.
        is_shared = self.relaxation == "score" or self.paths == 1
        return {
            "paths": self.paths,
            "relaxation": "shared" if is_shared else self.relaxation,
            "assignment": self.assignment,
        }

    def _teacher(self, batch: Batch) -> Tensor | None:
        """Outputs of the whole supernet, once for all sub-graphs of the step."""
        return teacher_outputs(self.supernet, batch[0]) if self.current_kd_weight else None

    def _loss(
        self, run: "_Pass", group: Sequence[int], gates: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Run a group of sub-graphs and return the sum of their losses, each over K."""
        losses = []
        for k in group:
            with (
                self.drop_blocks.active(
                    rate=self.current_drop_rate,
                    block=self._block(run.batch[0]),
                    seed=run.seed,
                    path=k,
                ),
                # Candidates run in one sub-graph only; what is around them runs in all.
                frozen_statistics(self.shared_layers) if k else contextlib.nullcontext(),
            ):
                gate = run.drawn.gates(k, None if gates is None else gates[k])
                loss, outputs, metrics = self._evaluate(run.split, run.batch, gate)
            if run.teacher is not None:
                guidance = distillation_loss(outputs, run.teacher, self.kd_temperature)
                loss = loss + self.current_kd_weight * guidance
                metrics["kd/loss" if run.split == "train" else "kd/valid_loss"] = guidance.detach()
            run.metrics.append(metrics)
            losses.append(loss / self.paths)
        return sum(losses[1:], start=losses[0])

    def _block(self, inputs: Tensor) -> int:
        """Side of a dropped block: smaller for the small images of CIFAR."""
        return self.drop_block or (3 if inputs.shape[-2:][0] <= 32 else 7)

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside ``supernet.state_dict()``, continues the search to the bit."""
        return super().state_dict() | {
            "baseline": self.baseline.clone(),
            "baseline_weight": self.baseline_weight.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, after :meth:`prepare`."""
        super().load_state_dict(state)
        self.baseline.copy_(state["baseline"])
        self.baseline_weight.copy_(state["baseline_weight"])


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One batch on its way through all sub-graphs of a draw."""

    split: str
    batch: Batch
    drawn: SubGraphs
    seed: Tensor
    teacher: Tensor | None
    metrics: list[Metrics] = dataclasses.field(default_factory=list)
