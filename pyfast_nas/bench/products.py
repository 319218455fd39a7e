"""Exact products with second derivatives on a whole super-net: plain double backward, and ours."""

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
        net: Sizes of the super-net and of the batch.
    """

    operator: ClassVar[str] = "product"
    providers: ClassVar[tuple[str, ...]] = ("eager", "channels-last", "fused")

    net: DARTSCase

    @property
    def name(self) -> str:
        """Label of tables and result rows."""
        return f"exact, {self.net.name}"

    def call(self, provider: str, dtype: torch.dtype, device: str) -> Callable[[], list[Tensor]]:
        """Return the call of a provider: products by the weights, then by the alphas."""
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

            return ours
        return lambda: _double_backward(loss(), weights, alphas, vector)

    def calls(self, names: tuple[str, ...], device: str) -> Mapping[str, Callable[[], object]]:
        """Return the calls of these providers, each checked.

        Raises:
            WrongResultError: If a provider computes something else.
        """
        what = f"{self.operator}: {self.name}"
        truth = self.call("eager", torch.float64, device)()
        wide = {"eager": truth, "fused": self.call("fused", torch.float64, device)()}
        check(wide, truth, "eager", f"{what}, in float64", tolerance=FLOAT64)
        made = {name: self.call(name, torch.float32, device) for name in names}
        results = {name: call() for name, call in made.items()}
        check(results, truth, "eager", what, tolerance=DEEP, kinks=KINKS)
        return made


def _double_backward(
    loss: Tensor, weights: list[nn.Parameter], alphas: list[nn.Parameter], vector: list[Tensor]
) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    return list(torch.autograd.grad(gradients, [*weights, *alphas], vector, materialize_grads=True))
