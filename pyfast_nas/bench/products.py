"""Exact products with second derivatives on a whole supernet: plain double backward, and ours."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyfast_nas.bench.networks import CLASSES, DARTSCase
from pyfast_nas.bench.rivals import PROVIDERS
from pyfast_nas.bench.workload import DEEP, FLOAT64, KINKS, check
from pyfast_nas.hypergradients import BilevelProblem, HessianProducts

__all__ = ["ProductCase"]

DIRECTION = 3  # seed of the vector


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductCase:
    """The Hessian in the weights and the mixed derivative times a vector, from nothing.

    A call takes the gradient with its graph, and both products in one pass backwards.

    Attributes:
        net: Sizes of the supernet and of the batch.
    """

    operator: ClassVar[str] = "product"
    providers: ClassVar[tuple[str, ...]] = ("eager", "channels-last", "fused")

    net: DARTSCase

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        return f"exact, {self.net.name}"

    def made(
        self, provider: str, dtype: torch.dtype, device: str
    ) -> tuple[Callable[[], Tensor], Callable[[], list[Tensor]]]:
        """Return a provider's loss, and its call: products by the weights, then by the alphas."""
        how = PROVIDERS[provider]
        model = self.net.module(provider).to(device, dtype)
        generator = torch.Generator().manual_seed(2)
        shape = self.net.input_shapes[0]
        images = torch.randn(shape, generator=generator).to(device, dtype)
        labels = torch.randint(CLASSES, shape[:1], generator=generator).to(device)
        if how.channels_last:
            model.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        alphas = model.arch_parameters()
        arch = set(alphas)
        weights = [p for p in model.parameters() if p not in arch]
        generator.manual_seed(DIRECTION)
        vector = [torch.randn(w.shape, generator=generator).to(device, dtype) for w in weights]

        def loss(batch: object = None) -> Tensor:
            return F.cross_entropy(model(images), labels)

        if how.ours:
            problem = BilevelProblem(
                weights=weights, alphas=alphas, train_loss=loss, valid_loss=loss
            )

            def ours() -> list[Tensor]:
                of_weights, of_alphas = HessianProducts(problem, None).both(vector)
                return [*of_weights, *of_alphas]

            return loss, ours
        return loss, lambda: _double_backward(loss(), weights, alphas, vector)

    def calls(self, names: tuple[str, ...], device: str) -> Mapping[str, Callable[[], object]]:
        """Return the calls of these providers, each checked.

        Raises:
            WrongResultError: If a provider computes something else.
        """
        what = f"{self.operator}: {self.name}"
        wide = {
            name: _results(*self.made(name, torch.float64, device)) for name in ("eager", "fused")
        }
        truth = wide["eager"]
        check(wide, truth, "eager", f"{what}, in float64", tolerance=FLOAT64)
        made = {name: self.made(name, torch.float32, device) for name in names}
        results = {name: _results(*pair) for name, pair in made.items()}
        check(results, truth, "eager", what, tolerance=DEEP, kinks=KINKS)
        return {name: call for name, (_, call) in made.items()}


def _results(loss: Callable[[], Tensor], call: Callable[[], list[Tensor]]) -> list[Tensor]:
    # The loss has no steps; the products, as gradients of a gradient, have.
    return [loss().detach(), *call()]


def _double_backward(
    loss: Tensor, weights: list[nn.Parameter], alphas: list[nn.Parameter], vector: list[Tensor]
) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    return list(torch.autograd.grad(gradients, [*weights, *alphas], vector, materialize_grads=True))
