r"""SNAS: stochastic neural architecture search, single level, through a concrete relaxation.

Xie, Zheng, Liu & Lin, "SNAS: Stochastic Neural Architecture Search", ICLR 2019, arXiv 1812.09926.

As printed: each edge weighs all its candidates by one sample of the concrete distribution (1), the
same for all cells of a kind; weights and architecture parameters minimise the expected loss on the
same batch, by one forward and one backward pass (eq. 4); the cost of resources decomposes over the
edges (section 2.4).

.. math::
    (1)\quad Z_k &= \frac{e^{(\ell_k + G_k)/\tau}}{\sum_j e^{(\ell_j + G_j)/\tau}} \\
    (2)\quad \ln p(z) &= \ln\Gamma(n) + (n - 1)\ln\tau + \sum_k \ell_k - (\tau + 1)\sum_k \ln z_k
             - n \ln\sum_k e^{\ell_k} z_k^{-\tau}

As in the authors' code: all constants, the linear fall of the temperature, the initial logits, the
forms of the cost of resources. Ours: the temperature falls over the epochs there are, where theirs
always takes 150; in (2) the number of candidates is that of the row, where theirs is 8, and nothing
is cut off; Adam on every device; no dropped paths. The closed form of the cost is the default.
"""

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.algorithms.cost_aware import image_batch
from pyfast_nas.algorithms.gradient_search import GradientSearch
from pyfast_nas.algorithms.options import Range
from pyfast_nas.algorithms.sub_graphs import stack_tables
from pyfast_nas.costs.resource import ResourceCost
from pyfast_nas.errors import ConfigError
from pyfast_nas.nn import GateOutput, Supernet
from pyfast_nas.typing import Alphas, Batch, Metrics

__all__ = ["SNAS", "concrete_log_density", "concrete_log_sample"]

_INITIAL = 1.0, 0.01  # mean and standard deviation of the logits
_INITIAL_STREAM = 3


@dataclasses.dataclass(kw_only=True, eq=False)
class SNAS(GradientSearch):
    """SNAS; the equations stand at the top of the module.

    Each step draws one seed from the generator, and :meth:`prepare` one for the initial logits. The
    validation batch of a step is not looked at.

    Example:
        >>> import torch
        >>> from pyfast_nas import spaces
        >>> space = spaces.Toy()
        >>> algorithm = SNAS()
        >>> algorithm.prepare(space.supernet(), space=space, epochs=1, steps_per_epoch=2)
        >>> batch = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
        >>> sorted(algorithm.step(batch, batch))
        ['alpha/gradient_norm', 'tau', 'train/accuracy', 'train/loss']

    References:
        Xie, Zheng, Liu & Lin, ICLR 2019. Maddison, Mnih & Teh, "The Concrete Distribution", ICLR
        2017, eq. 10 (the sample) and eq. 22 (its density).
    """

    name: ClassVar[str] = "snas"

    tau_max: Annotated[float, Range(above=0)] = 1.0
    """Temperature in the first epoch."""

    tau_min: Annotated[float, Range(above=0)] = 0.03
    """Temperature that the linear schedule would reach one epoch after the last."""

    alpha_clip: Annotated[float, Range(above=0)] = 10.0
    """Largest global norm of the architecture gradient."""

    resource_weight: Annotated[float, Range(at_least=0)] = 0.0
    """Weight of the cost of resources in the loss; 0 counts none, 0.0015 is the code's mildest."""

    resource_cost: Literal["discrete", "reparametrization", "policy_gradient"] = "discrete"
    """Gradient of the cost: at the probabilities themselves, through the sampled weights, or by the
    score of the sample."""

    resource_form: Literal["log", "linear"] = "log"
    """Mean logarithm of parameters, operations and memory accesses, or their weighted sum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_min > self.tau_max:
            raise ConfigError(
                f"SNAS: tau_min must be at most tau_max={self.tau_max:g}, got {self.tau_min:g}"
            )
        if not self.resource_weight and (self.resource_cost, self.resource_form) != (
            "discrete",
            "log",
        ):
            raise ConfigError(
                f"SNAS: resource_weight must be greater than 0 with resource_cost="
                f"{self.resource_cost!r} and resource_form={self.resource_form!r}, since 0 counts "
                f"no cost, got {self.resource_weight:g}"
            )

    def prepare(self, supernet: Supernet, **run: Any) -> None:
        """Take the supernet to search, draw its architecture parameters, make both optimizers.

        Raises:
            ConfigError: If resources shall cost something and the space has no images.
        """
        super().prepare(supernet, **run)
        self._initialise()
        # Drawn before each step, never inside of one.
        self.seed = torch.zeros(2, dtype=torch.int64, device=self.device)
        self.resources: ResourceCost | None = None
        if self.resource_weight:
            self.resources = ResourceCost(
                supernet,
                image_batch(self, "resource_weight"),
                form=self.resource_form,
                device=self.device,
            )

    def _initialise(self) -> None:
        """Draw the logits anew: their common level is what the decay of Adam pulls at."""
        seed = ops.draw_seed(self.generator, self.device)
        mean, deviation = _INITIAL
        row = 0
        with torch.no_grad():
            for table, alpha in self.supernet.alphas.items():
                uniform = ops.philox_uniform(
                    seed, *alpha.shape, stream=_INITIAL_STREAM, first_row=row
                )
                row += len(alpha)
                present = ~self.supernet.logits()[table].isneginf()
                alpha.copy_((mean + deviation * torch.special.ndtri(uniform)) * present)
        self.first_alphas = self.alphas

    @property
    def why_not_recorded(self) -> str:
        """Why no step can be recorded: empty, all candidates run in every step."""
        return ""

    @property
    def tau(self) -> float:
        """Temperature of this epoch."""
        left = 1 - self.epoch / max(self.epochs, 1)
        return self.tau_min + left * (self.tau_max - self.tau_min)

    def step(self, train: Batch, valid: Batch) -> Metrics:
        """Make one step of weights and architecture on ``train``; ``valid`` is not looked at."""
        self.start_step()
        metrics = self.run_step(train, valid)
        self.finish_step()
        return metrics

    def start_step(self) -> None:
        """Set what depends on the epoch, and draw the seed of the step."""
        super().start_step()
        self.seed.copy_(ops.draw_seed(self.generator, self.device))

    def finish_step(self) -> None:
        """Count the step that was made."""
        super().finish_step()
        self.alpha_steps += 1

    def run_step(self, train: Batch, valid: Batch) -> Metrics:
        """Do the device's part of a step: the same work every time."""
        self.alpha_optimizer.zero_grad(set_to_none=True)
        with self._weight_update():
            logits = self.supernet.logits()
            log_sample = self._draw(logits)
            gates = {
                t: GateOutput(log_z.exp().to(logits[t].dtype)) for t, log_z in log_sample.items()
            }
            loss, _, metrics = self._evaluate("train", train, gates)
            if self.resources is not None:
                cost, metrics["resource"] = self._resource_loss(logits, log_sample)
                loss = loss + self.resource_weight * cost
            loss.backward()
        return {"tau": self.tau} | metrics | self._architecture_step()

    def _draw(self, logits: Alphas) -> dict[str, Tensor]:
        """Logarithms of one sample (1) of every row."""
        stacked = stack_tables(logits)
        # In double precision all kernels give the same noise; in half precision a uniform may be 1.
        dtype = torch.promote_types(stacked.dtype, torch.float32)
        uniform = ops.philox_uniform(self.seed, *stacked.shape).to(dtype)
        rows = (-(-uniform.log()).log()).split([len(table) for table in logits.values()])
        return {
            table: concrete_log_sample(
                row_logits.to(dtype), noise_of_table[:, : row_logits.shape[1]], self.tau
            )
            for (table, row_logits), noise_of_table in zip(logits.items(), rows, strict=True)
        }

    def _resource_loss(self, logits: Alphas, log_sample: Alphas) -> tuple[Tensor, Tensor]:
        """What gives the gradient of the cost, and the cost."""
        if self.resource_cost == "discrete":
            weights = {table: rows.softmax(-1) for table, rows in logits.items()}
        else:
            weights = {table: log_z.exp() for table, log_z in log_sample.items()}
        costs = self.resources(weights)
        total = torch.stack([rows.sum() for rows in costs.values()]).sum()
        if self.resource_cost != "policy_gradient":
            return total, total.detach()
        # Rows are independent: each is credited with its own cost alone.
        credited = [
            (costs[table].detach() * concrete_log_density(log_z.detach(), logits[table], self.tau))
            for table, log_z in log_sample.items()
        ]
        return torch.cat(credited).sum(), total.detach()

    def _architecture_step(self) -> Metrics:
        gradients = [
            torch.zeros_like(alpha) if alpha.grad is None else alpha.grad
            for alpha in self.alpha_parameters
        ]
        for alpha, gradient in zip(self.alpha_parameters, gradients, strict=True):
            alpha.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.alpha_parameters, self.alpha_clip, foreach=True)
        return self._update_alphas(gradients)


def concrete_log_sample(logits: Tensor, noise: Tensor, tau: float) -> Tensor:
    """Return the logarithm of a sample of the concrete distribution (1), differentiable.

    Args:
        logits: Logits of every row, minus infinity where a row has no candidate.
        noise: Gumbel noise.
        tau: Temperature, greater than 0.

    Shape:
        ``[rows, num_ops]`` each -> ``[rows, num_ops]``.

    Example:
        >>> logits, noise = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
        >>> concrete_log_sample(logits, noise, tau=0.5).exp()
        tensor([[0.8808, 0.1192]])

    References:
        Maddison, Mnih & Teh, "The Concrete Distribution", ICLR 2017, eq. 10.
    """
    return torch.log_softmax((logits + noise) / tau, dim=-1)


def concrete_log_density(log_sample: Tensor, logits: Tensor, tau: float) -> Tensor:
    """Return the logarithm of the concrete distribution's density (2) on the simplex.

    Args:
        log_sample: Logarithm of a point of the simplex: weights that underflow have one, too.
        logits: Logits of every row, minus infinity where a row has no candidate.
        tau: Temperature, greater than 0.

    Shape:
        ``[rows, num_ops]`` each -> ``[rows]``.

    Example:
        >>> z, logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[0.3, -0.2, 0.1, 0.5]])
        >>> round(concrete_log_density(z.log().double(), logits.double(), tau=0.5).item(), 6)
        -0.029182

    References:
        Maddison, Mnih & Teh, "The Concrete Distribution", ICLR 2017, eq. 22.
    """
    present = ~logits.isneginf()
    n = present.sum(-1).to(logits.dtype)
    log_z = log_sample.where(present, 0.0)
    own = (logits.where(present, 0.0) - (tau + 1) * log_z).sum(-1)
    return (
        torch.lgamma(n)
        + (n - 1) * math.log(tau)
        + own
        - n * torch.logsumexp(logits - tau * log_z, dim=-1)
    )
