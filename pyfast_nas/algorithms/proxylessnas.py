r"""ProxylessNAS: search along binarised paths, with the cost of the architecture in the loss.

Cai, Zhu & Han, "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR
2019, arXiv 1812.00332.

As printed: weights are trained along one sampled path (section 3.1); the gradient of a row's logits
is that of its probabilities in place of its gates,

.. math::
    (1)\quad \partial L/\partial\alpha_i = p_i \Big(c_i - \sum_j p_j c_j\Big),\qquad
    c_j = \langle \partial L/\partial y, o_j(x)\rangle,

or within two drawn candidates, which leaves the probabilities of the others where they are (section
3.2.1); the expected latency (section 3.3.1); REINFORCE (section 3.3.2).
As in the authors' code: three ways to the :math:`c_j`, of which the one that runs other candidates
again in backward is the default; schedules and constants; both forms in which the cost enters the
loss; the baseline of REINFORCE, which moves before it is used.
Ours: the warm-up is a share of the epochs; the gradient's norm is clipped; the code drops a row's
whole gradient where the active candidate is ``none``: here its :math:`c` is zero, the others' and
the gradient of the cost stay; no statistics move in an architecture step. Labels are smoothed if
the caller's loss does so, for weights and architecture alike.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from pyfast_nas.algorithms.base import average, cosine
from pyfast_nas.algorithms.binary_gates import (
    BinaryGates,
    hold_the_others,
    pair_gates,
    path_gates,
)
from pyfast_nas.algorithms.cost_aware import CostAware
from pyfast_nas.algorithms.options import Range, require_read
from pyfast_nas.algorithms.path_search import PathSearch
from pyfast_nas.algorithms.sub_graphs import (
    SubGraphs,
    plackett_luce_log_prob,
    stack_tables,
    unstack_tables,
)
from pyfast_nas.costs import CostTable, add_linear, mul_log
from pyfast_nas.errors import ConfigError
from pyfast_nas.nn import Supernet
from pyfast_nas.typing import Batch, Metrics

__all__ = ["ProxylessNAS"]

# The authors' code: exponent of the reward's cost, and step of the baseline.
_REWARD_EXPONENT = 0.1
_BASELINE_STEP = 0.99


@dataclasses.dataclass(kw_only=True, eq=False)
class ProxylessNAS(CostAware, PathSearch):
    """ProxylessNAS in its four forms; the equations stand at the top of the module.

    Example:
        >>> import torch
        >>> from pyfast_nas import spaces
        >>> space = spaces.Toy()
        >>> algorithm = ProxylessNAS(gradient="two", alpha_interval=2)
        >>> algorithm.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=4)
        >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
        >>> ["valid/loss" in algorithm.step(batch, batch) for _ in range(4)]
        [False, True, False, True]

    References:
        Cai, Zhu & Han, ICLR 2019, eqs. 2-9.
    """

    name: ClassVar[str] = "proxylessnas"

    gradient: Literal["full_v2", "full", "two", "reinforce"] = "full_v2"
    """Gradient of the architecture: (1) with other candidates run again in backward ("full_v2") or
    all run forward ("full"), within a drawn pair ("two"), or from rewards alone ("reinforce")."""

    samples: Annotated[int, Range(at_least=1)] = 10
    """Architectures drawn for one step of gradient="reinforce"."""

    alpha_interval: Annotated[int, Range(at_least=1)] = 5
    """Weight steps for each architecture step."""

    alpha_warmup: Annotated[float, Range(at_least=0, at_most=1)] = 0.25
    """Share of the epochs that train weights alone, with a learning rate of their own."""

    alpha_rest: Annotated[int, Range(at_least=0)] = 1
    """Epochs after the warm-up in which the architecture still rests, but for the last epoch."""

    warmup_lr: Annotated[float, Range(above=0)] = 0.05
    """Learning rate of the weights at the start of the warm-up; a cosine to 0 over its steps."""

    cost_form: Literal["mul-log", "add-linear"] = "mul-log"
    """How the expected cost enters the loss: a (log cost / log reference)^b times it, or lambda
    (cost / reference - 1) beside it."""

    cost_reference: Annotated[float, Range(above=0)] = 80.0
    """Cost of equal footing, in the unit of the cost; published are 80 ms of a phone."""

    cost_scale: Annotated[float, Range(above=0)] = 0.2
    """The factor a of cost_form="mul-log"."""

    cost_exponent: Annotated[float, Range(at_least=0)] = 0.3
    """The power b of cost_form="mul-log"."""

    cost_weight: Annotated[float, Range(at_least=0)] = 0.1
    """The factor lambda of cost_form="add-linear"."""

    weight_lr_min: Annotated[float, Range(at_least=0)] = 0.0
    """Learning rate that the cosine over the steps approaches at the end."""

    weight_nesterov: bool = True
    """Whether the momentum of the weights is Nesterov's."""

    weight_decay: Annotated[float, Range(at_least=0)] = 4e-5
    """L2 penalty of the weights (coupled, as in SGD)."""

    alpha_lr: Annotated[float, Range(above=0)] = 1e-3
    """Learning rate of the architecture parameters."""

    alpha_betas: Annotated[tuple[float, float], Range(at_least=0, below=1)] = (0.0, 0.999)
    """Adam's decay rates of the architecture parameters; without momentum."""

    alpha_decay: Annotated[float, Range(at_least=0)] = 0.0
    """L2 penalty of the architecture parameters (coupled, as in Adam)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rewards, costs = self.gradient == "reinforce", self.cost != "none"
        require_read(self, {"samples": rewards}, f"gradient={self.gradient!r}")
        in_loss, is_log = costs and not rewards, self.cost_form == "mul-log"
        read = {
            "cost_reference": costs,
            "cost_form": in_loss,
            "cost_scale": in_loss and is_log,
            "cost_exponent": in_loss and is_log,
            "cost_weight": in_loss and not is_log,
        }
        chosen = f"cost={self.cost!r:.200} and cost_form={self.cost_form!r}"
        require_read(self, read, f"gradient={self.gradient!r}, {chosen}")
        read = {"warmup_lr": self.alpha_warmup > 0, "alpha_rest": self.alpha_warmup < 1}
        require_read(self, read, f"alpha_warmup={self.alpha_warmup:g}")

    def prepare(self, supernet: Supernet, **run: Any) -> None:
        """Take the supernet to search, find its costs, make both optimizers.

        Raises:
            ConfigError: If a row has one candidate and the gradient is that of pairs, or the cost
                or its reference cannot enter the loss; see also the base class.
        """
        shortest = min(len(row) for rows in supernet.candidates.values() for row in rows)
        if self.gradient == "two" and shortest < 2:
            raise ConfigError(
                f"ProxylessNAS: gradient must not be 'two' where a row has {shortest} candidate"
            )
        super().prepare(supernet, **run)
        self.baseline = torch.full((), torch.nan, device=self.device)  # until the first reward

    def _set_costs(self, table: CostTable | None) -> None:
        super()._set_costs(table)
        rewards = self.gradient == "reinforce"
        if self.cost_table is None or (self.cost_form == "add-linear" and not rewards):
            return
        # Before the search: in a recorded step nobody looks, and the cost would give NaN.
        least, lowest = 0 if rewards else 1, self._lowest_cost()
        if not lowest > least:
            why, instead = ("power", "") if rewards else ("logarithm", "--cost-form add-linear or ")
            raise ConfigError(
                f"ProxylessNAS: cost must be greater than {least} for every architecture, since "
                f"its {why} enters the {'reward' if rewards else 'loss'}, got {lowest:g} "
                f"{self.cost_table.unit} for the cheapest: take {instead}another table"
            )
        if not rewards and not self.cost_reference > 1:
            raise ConfigError(
                "ProxylessNAS: cost_reference must be greater than 1 with cost_form='mul-log', "
                f"since its logarithm enters the loss, got {self.cost_reference:g}"
            )

    def _lowest_cost(self) -> float:
        """Cost of the cheapest candidate of every row together."""
        candidates = self.supernet.candidates
        return self.cost_table.fixed + sum(
            float(costs[: len(names)].min())
            for table, rows in self.cost_table.rows.items()
            for costs, names in zip(rows, candidates[table], strict=True)
        )

    def _rate_options(self) -> dict[str, Any]:
        # On the device, where a recorded step finds the rate of every step; fused takes it there.
        self.rate = torch.full((), self.weight_lr, device=self.device)
        return {"lr": self.rate, "fused": True}

    @property
    def warmup_epochs(self) -> int:
        """Epochs that train weights alone, with a learning rate of their own."""
        return self._epochs_of(self.alpha_warmup)

    @property
    def moves_alphas(self) -> bool:
        """Whether the next step moves the architecture."""
        first = self.warmup_epochs
        first = max(first, min(first + self.alpha_rest, self.epochs - 1))
        return self.epoch >= first and (self.steps + 1) % self.alpha_interval == 0

    @property
    def current_weight_lr(self) -> float:
        """Learning rate of the weights in the next step: a cosine over the steps of each part."""
        warmup = self.warmup_epochs * self.steps_per_epoch
        step = min(self.steps, max(self.epochs * self.steps_per_epoch - 1, 0))
        if step < warmup:
            return cosine(self.warmup_lr, 0.0, step, warmup)
        steps = self.epochs * self.steps_per_epoch - warmup
        return cosine(self.weight_lr, self.weight_lr_min, step - warmup, steps)

    def start_step(self) -> None:
        """Set what depends on the step, and draw its seed."""
        super().start_step()
        self.rate.fill_(self.current_weight_lr)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = self.rate
        if self.weight_momentum and not self.weight_optimizer.state:
            # The fused step wants all momenta or none; begun at zero they are the same.
            for weight in self.weights:
                self.weight_optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

    def _architecture_step(self, valid: Batch, on_device: bool) -> Metrics:
        if self.gradient == "reinforce":
            metrics, gradients = self._reward_gradient(valid, on_device)
            return metrics | self._update_alphas(gradients)
        drawn = self._draw(
            self._logits(), self.seed, on_device, paths=2 if self.gradient == "two" else 1
        )
        metrics: Metrics = {}
        with self._without_trace():
            # No name for the loss: layers before the first gate free nothing in this backward.
            gradients = torch.autograd.grad(
                self._path_loss(valid, self._gates(drawn), metrics),
                self.alpha_parameters,
                allow_unused=True,
                materialize_grads=True,
            )
        before = self.alphas
        metrics |= self._update_alphas(gradients)
        if self.gradient == "two":
            hold_the_others(self.supernet.alphas, before, drawn.indices)
        return metrics

    def _gates(self, drawn: SubGraphs) -> BinaryGates:
        logits = self.supernet.logits()
        if self.gradient == "two":
            return pair_gates(logits, drawn, self.seed)
        return path_gates(logits, drawn, recompute=self.gradient == "full_v2")

    def _path_loss(self, valid: Batch, binary: BinaryGates, metrics: Metrics) -> Tensor:
        """Run the path and return its loss with the expected cost; fills in the metrics."""
        loss, _, found = self._evaluate("valid", valid, binary.gates)
        metrics |= found
        return self._with_cost(loss, binary.probabilities, metrics)

    def _with_cost(
        self, loss: Tensor, probabilities: dict[str, Tensor], metrics: Metrics | None = None
    ) -> Tensor:
        if self.cost_table is None or self.gradient == "reinforce":
            return loss
        cost = self.cost_table.expected(probabilities)
        if metrics is not None:
            metrics["alpha/cost"] = cost.detach()
        if self.cost_form == "add-linear":
            return add_linear(loss, cost, self.cost_reference, self.cost_weight)
        return mul_log(loss, cost, self.cost_reference, self.cost_scale, self.cost_exponent)

    def _reward_gradient(self, valid: Batch, on_device: bool) -> tuple[Metrics, tuple[Tensor, ...]]:
        """Rewards above the baseline times the scores of the architectures that got them."""
        stacked = stack_tables(self.supernet.logits())
        rewards, log_probs, passes = [], [], []
        for sample in range(self.samples):
            # The weights' pass has offset 1.
            call = sample + (sample > 0)
            drawn = self._draw(self._logits(), self.seed + call * self.next_call, on_device)
            with self._without_trace(), torch.no_grad():
                rewards.append(self._reward(valid, drawn, passes))
            log_probs.append(plackett_luce_log_prob(stacked, drawn.indices).sum())
        mean = torch.stack(rewards).mean()
        moved = self.baseline + _BASELINE_STEP * (mean - self.baseline)
        self.baseline.copy_(torch.where(self.baseline.isnan(), mean, moved))
        advantages = torch.stack(rewards) - self.baseline
        loss = -(advantages.to(stacked.dtype) * torch.stack(log_probs)).mean()
        gradients = torch.autograd.grad(loss, self.alpha_parameters)
        return average(passes) | {"alpha/reward": mean}, gradients

    def _reward(self, valid: Batch, drawn: SubGraphs, passes: list[Metrics]) -> Tensor:
        """Accuracy of a drawn architecture, times a power of what it costs."""
        _, _, metrics = self._evaluate("valid", valid, drawn.gates(0))
        passes.append(metrics)
        if "valid/accuracy" not in metrics:
            raise ConfigError(
                "ProxylessNAS: gradient must not be 'reinforce' where labels are not classes: its "
                "reward is the accuracy"
            )
        if self.cost_table is None:
            return metrics["valid/accuracy"]
        ran = unstack_tables(drawn.selected(0).to(drawn.logits.dtype), self.supernet.alphas)
        cost = self.cost_table.expected(ran)
        return metrics["valid/accuracy"] * (self.cost_reference / cost) ** _REWARD_EXPONENT

    def state_dict(self) -> dict[str, Any]:
        """Return what, beside ``supernet.state_dict()``, continues the search to the bit."""
        return super().state_dict() | {"baseline": self.baseline.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`, after :meth:`prepare`."""
        super().load_state_dict(state)
        self.baseline.copy_(state["baseline"])
