"""Whole search steps: DARTS of first and second order in plain PyTorch, and ours."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfast_nas import algorithms, spaces
from pyfast_nas.bench.networks import CLASSES, DARTSCase
from pyfast_nas.bench.rivals import PROVIDERS
from pyfast_nas.typing import Batch

__all__ = [
    "LARGE",
    "MODES",
    "PATHS",
    "PLAIN",
    "SEARCHES",
    "SECOND_ORDER",
    "PlainSearch",
    "PlainSecondOrder",
    "StepCase",
    "path_search",
]

Step = Callable[[Batch, Batch], Mapping[str, Tensor]]

SECOND_ORDER = "second-order DARTS"
LARGE = 16  # times the batch of the timed steps, at which a step of second order is weighed

# Case -> the algorithm that our provider runs. Guidance is one more forward pass of the supernet.
SEARCHES: dict[str, Callable[[], Any]] = {
    "first-order DARTS": algorithms.DARTS,
    SECOND_ORDER: lambda: algorithms.DARTS(hypergradient="finite_difference"),
    "MSG-DAS, K = 1": lambda: _msg_das(1),
    "MSG-DAS, K = 2": lambda: _msg_das(2),
    "MSG-DAS, K = 4": lambda: _msg_das(4),
    "MSG-DAS, K = 2, without guidance": lambda: _msg_das(2, kd_weight=0.0),
}


# Numbers of sub-graphs and ways of running them whose memory is compared.
PATHS = (1, 2, 4, 8)
MODES = ("accumulate", "joint")


def path_search(mode: str, paths: int) -> str:
    """Name of MSG-DAS with ``paths`` sub-graphs, without guidance, which costs the same for any K.

    Example:
        >>> path_search("joint", 2)
        'joint, K = 2'
    """
    return f"{mode}, K = {paths}"


def _search(name: str) -> Any:
    """Make the algorithm of this name."""
    if name in SEARCHES:
        return SEARCHES[name]()
    named = {path_search(mode, k): (mode, k) for mode in MODES for k in PATHS}
    mode, k = named[name]
    return _msg_das(k, mode=mode, kd_weight=0.0)


def _msg_das(paths: int, **options: Any) -> algorithms.MSGDAS:
    # Past both warm-ups, so that a step does all that it ever does.
    if options.get("kd_weight", 1.0):
        options["kd_warmup"] = 0.0
    return algorithms.MSGDAS(paths=paths, alpha_warmup=0.0, **options)


class PlainSearch:
    """First-order DARTS as a user writes it: Adam for the logits, SGD for the weights.

    Only what is updated gets a gradient, so the architecture pass takes none of the weights. The
    constants are those of the DARTS code and of `pyfast_nas.algorithms.DARTS`.

    Args:
        model: Network with ``arch_parameters()``.

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, algorithm 1
        with xi = 0.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.alphas = model.arch_parameters()
        arch = set(self.alphas)
        self.weights = [p for p in model.parameters() if p not in arch]
        self.adam = torch.optim.Adam(
            self.alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, foreach=True
        )
        self.sgd = torch.optim.SGD(
            self.weights, lr=0.025, momentum=0.9, weight_decay=3e-4, foreach=True
        )

    def step(self, train: Batch, valid: Batch) -> dict[str, Tensor]:
        """Make one architecture step on ``valid``, then one weight step on ``train``."""
        valid_loss, gradients = self.hypergradient(train, valid)
        for alpha, gradient in zip(self.alphas, gradients, strict=True):
            alpha.grad = gradient
        self.adam.step()
        train_loss, gradients = self._gradients(train, self.weights)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        nn.utils.clip_grad_norm_(self.weights, 5.0, foreach=True)
        self.sgd.step()
        return {"train/loss": train_loss, "valid/loss": valid_loss}

    def hypergradient(self, train: Batch, valid: Batch) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the validation loss and what the logits are moved along."""
        return self._gradients(valid, self.alphas)

    def _gradients(self, batch: Batch, wanted: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        return loss.detach(), torch.autograd.grad(loss, wanted, materialize_grads=True)


class PlainSecondOrder(PlainSearch):
    """DARTS of second order by central differences, with the fewest passes and fused updates.

    Weights are moved in place and copied back.

    References:
        Liu, Simonyan & Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, eqs. 6-8.
    """

    @torch.no_grad()
    def _move(self, start: Sequence[Tensor], along: Sequence[Tensor], step: Tensor) -> None:
        torch._foreach_copy_(
            self.weights, torch._foreach_add(start, torch._foreach_mul(along, step))
        )

    def hypergradient(self, train: Batch, valid: Batch) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the validation loss after the virtual step, and the hypergradient there."""
        options, state = self.sgd.param_groups[0], self.sgd.state
        start = [weight.detach().clone() for weight in self.weights]
        _, gradients = self._gradients(train, self.weights)
        update = torch._foreach_add(gradients, start, alpha=options["weight_decay"])
        momenta = [state.get(weight, {}).get("momentum_buffer") for weight in self.weights]
        if momenta[0] is not None:
            torch._foreach_add_(update, momenta, alpha=options["momentum"])
        rate = torch.tensor(-options["lr"], device=start[0].device)
        self._move(start, update, rate)
        loss, found = self._gradients(valid, [*self.weights, *self.alphas])
        along, direct = found[: len(start)], found[len(start) :]
        step = 0.01 / torch.stack(torch._foreach_norm(along)).norm()
        self._move(start, along, step)
        _, plus = self._gradients(train, self.alphas)
        self._move(start, along, -step)
        _, minus = self._gradients(train, self.alphas)
        with torch.no_grad():
            torch._foreach_copy_(self.weights, start)
        pairs = zip(direct, plus, minus, strict=True)
        return loss, [d + rate * (p - m) / (2 * step) for d, p, m in pairs]


# Searches that are written out in plain PyTorch; the first one's step is timed beside all others.
PLAIN = {"first-order DARTS": PlainSearch, SECOND_ORDER: PlainSecondOrder}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCase:
    """Search steps on the DARTS supernet, with random images.

    Attributes:
        net: Sizes of the supernet and of the batch.
    """

    net: DARTSCase

    def name(self, search: str) -> str:
        """Label of tables and result rows."""
        return f"{search}: {self.net.name}"

    def stepper(
        self,
        provider: str,
        search: str = "first-order DARTS",
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> "Stepper":
        """Return a fresh search that makes steps of ``search`` as ``provider`` does.

        ``"recorded"`` is ``"fused"`` whose steps are replayed where they can be.
        """
        is_recorded = provider == "recorded"
        provider = "fused" if is_recorded else provider
        how = PROVIDERS[provider]
        model = self.net.module(provider).to(device, dtype)
        generator = torch.Generator().manual_seed(2)
        shape = self.net.input_shapes[0]
        batches = []
        for _ in range(2):
            images = torch.randn(shape, generator=generator).to(device, dtype)
            labels = torch.randint(CLASSES, shape[:1], generator=generator).to(device)
            batches.append((images, labels))
        if how.channels_last:
            model.to(memory_format=torch.channels_last)
            batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]
        if how.ours:
            algorithm = _search(search)
            # Long enough that no timed step reaches the second epoch.
            algorithm.prepare(
                model,
                space=spaces.DARTS(channels=self.net.channels, cells=self.net.cells),
                epochs=2,
                steps_per_epoch=1 << 40,
                generator=torch.Generator().manual_seed(3),
            )
            weights = model.weight_parameters()
        else:
            algorithm = PLAIN[search](model)
            weights = algorithm.weights
        graph = algorithms.StepGraph(algorithm) if is_recorded else None
        step = algorithm.step if graph is None else graph.step
        return Stepper(step, weights, *batches, provider=provider, graph=graph)


@dataclasses.dataclass(frozen=True)
class Stepper:
    """A search between two steps."""

    step: Step
    weights: list[nn.Parameter]
    train: Batch
    valid: Batch
    provider: str = "eager"
    graph: algorithms.StepGraph | None = None

    @property
    def why_not_recorded(self) -> str:
        """Why a step that was to be recorded is not, or empty."""
        return self.graph.reason if self.graph else ""

    def __call__(self) -> Mapping[str, Tensor]:
        """Make one step."""
        with PROVIDERS[self.provider].serving():
            return self.step(self.train, self.valid)

    def results(self) -> list[Tensor]:
        """Make one step; return both losses and how far it moved every weight."""
        before = copy.deepcopy([weight.detach() for weight in self.weights])
        metrics = self()
        losses = torch.stack([metrics["train/loss"], metrics["valid/loss"]])
        moved = [now.detach() - was for now, was in zip(self.weights, before, strict=True)]
        return [losses, *moved]
