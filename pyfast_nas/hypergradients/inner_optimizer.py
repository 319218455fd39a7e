"""One step of the weights' optimizer without taking it, and that step's derivative.

The optimizer is read and never changed; its step is a map of weights, gradient and momentum.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyfast_nas.errors import ConfigError
from pyfast_nas.hypergradients import vectors

__all__ = ["InnerOptimizer", "Pull", "clipping"]

# Gradient of a loss by the new weights -> by the raw gradient that the step was made of.
Pull = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclasses.dataclass
class _Group:
    """Weights that share the optimizer's settings."""

    places: list[int]
    options: dict[str, Any]

    def of(self, values: Sequence[Any]) -> list[Any]:
        """Return its part of the values."""
        return [values[place] for place in self.places]

    def put(self, values: list[Any], part: Sequence[Any]) -> None:
        """Write its part of the values."""
        for place, value in zip(self.places, part, strict=True):
            values[place] = value


class InnerOptimizer:
    """Reads ``torch.optim.SGD``, ``Adam`` or ``AdamW``: settings and state, without a change.

    Args:
        optimizer: What trains the weights.
        weights: Those of the problem; each must be in the optimizer.

    Raises:
        ConfigError: If the optimizer is of another kind, or a weight is not in it.

    Example:
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> inner = InnerOptimizer(torch.optim.SGD([w], lr=0.1, weight_decay=1.0), [w])
        >>> new, pull = inner.step([w.detach()], [torch.tensor([2.0])])
        >>> new, pull([torch.tensor([1.0])])
        ([tensor([0.7000])], [tensor([-0.1000])])

    References:
        Liu, Simonyan & Yang, "DARTS", ICLR 2019, eq. 7 for SGD.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Sequence[Tensor]) -> None:
        # Subclasses of Adam, AdamW among them, may compute something else: exact types only.
        if type(optimizer) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
            raise ConfigError(
                "InnerOptimizer: optimizer must be torch.optim.SGD, Adam or AdamW, got "
                f"{type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        self.weights = tuple(weights)
        self.is_sgd = type(optimizer) is torch.optim.SGD
        self._group_of = {
            id(parameter): group
            for group, options in enumerate(optimizer.param_groups)
            for parameter in options["params"]
        }
        for place, weight in enumerate(self.weights):
            if id(weight) not in self._group_of:
                raise ConfigError(
                    f"InnerOptimizer: weights[{place}] must be in the optimizer, got one of shape "
                    f"{list(weight.shape)} that is not"
                )

    @property
    def learning_rate(self) -> float | Tensor:
        """The current learning rate of all weights.

        Raises:
            ConfigError: If groups of weights have different ones.
        """
        rates = [group.options["lr"] for group in self._groups()]
        if any(rate is not rates[0] and rate != rates[0] for rate in rates[1:]):
            raise ConfigError(
                "InnerOptimizer: lr must be one number where an estimator takes its scale from "
                f"it, got {rates!r:.200}"
            )
        return rates[0]

    def _groups(self) -> list[_Group]:
        groups: dict[int, _Group] = {}
        for place, weight in enumerate(self.weights):
            index = self._group_of[id(weight)]
            options = self.optimizer.param_groups[index]
            groups.setdefault(index, _Group([], options)).places.append(place)
        return list(groups.values())

    def _state(self, place: int) -> dict[str, Any]:
        # Indexing would leave an empty entry that then appears in the optimizer's state dict.
        return self.optimizer.state.get(self.weights[place], {})

    def buffers(self) -> list[Tensor | None]:
        """Return the momentum of each weight, None where there is none yet."""
        return [self._state(place).get("momentum_buffer") for place in range(len(self.weights))]

    @torch.no_grad()
    def step(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> tuple[list[Tensor], Pull]:
        """Return the weights after one step, and the transposed derivative by the gradient.

        Args:
            weights: Values of the weights.
            gradients: Raw gradients of the loss there.

        Shape:
            Both lists, and those of the pull-back, are shaped like the weights.
        """
        if self.is_sgd:
            new, _, tape = self.sgd_step(weights, gradients, self.buffers())
            nothing = [None] * len(tape)
            return new, lambda adjoint: self.sgd_pull(adjoint, nothing, tape)[0]
        return self._adam_step(weights, gradients)

    @torch.no_grad()
    def sgd_step(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        buffers: Sequence[Tensor | None],
    ) -> tuple[list[Tensor], list[Tensor | None], list[bool]]:
        """Return weights and momentum after one step of SGD, and which momentum was there before.

        Raises:
            ConfigError: If the optimizer is not SGD.
        """
        if not self.is_sgd:
            raise ConfigError(
                "InnerOptimizer: optimizer must be torch.optim.SGD where more than one step is "
                f"unrolled, got {type(self.optimizer).__name__}"
            )
        new_weights, new_buffers = list(weights), list(buffers)
        existed = [buffer is not None for buffer in buffers]
        for group in _split(self._groups(), existed):
            options, old = group.options, group.of(weights)
            update = group.of(gradients)
            if options["maximize"]:
                update = vectors.scaled(update, -1.0)
            if options["weight_decay"] != 0:
                update = vectors.total(update, old, options["weight_decay"])
            if options["momentum"] != 0:
                # torch begins with the gradient itself, whatever the dampening.
                momentum = update
                if existed[group.places[0]]:
                    momentum = vectors.scaled(group.of(buffers), options["momentum"])
                    vectors.axpy_(momentum, 1 - options["dampening"], update)
                group.put(new_buffers, momentum)
                if options["nesterov"]:
                    update = vectors.total(update, momentum, options["momentum"])
                else:
                    update = momentum
            group.put(new_weights, vectors.total(old, update, -options["lr"]))
        return new_weights, new_buffers, existed

    @torch.no_grad()
    def sgd_pull(
        self,
        adjoint: Sequence[Tensor],
        buffer_adjoint: Sequence[Tensor | None],
        existed: Sequence[bool],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        """Pull a gradient back through one step of SGD.

        Args:
            adjoint: Gradient by the new weights.
            buffer_adjoint: Gradient by the new momentum, None where it is zero.
            existed: Which momentum was there before the step, as `sgd_step` says.

        Returns:
            Gradients by the raw gradient, by the old weights at a fixed gradient, and by the old
            momentum.
        """
        by_gradient, by_weights = list(adjoint), list(adjoint)
        by_buffer: list[Tensor | None] = [None] * len(adjoint)
        for group in _split(self._groups(), existed):
            options, momentum = group.options, group.options["momentum"]
            by_update = vectors.scaled(group.of(adjoint), -options["lr"])
            by_decayed = by_update  # by gradient + decay * weight
            if momentum != 0:
                by_momentum = vectors.scaled(by_update, momentum if options["nesterov"] else 1.0)
                after = group.of(buffer_adjoint)
                if after[0] is not None:
                    by_momentum = vectors.total(by_momentum, after)
                by_decayed = by_momentum
                if existed[group.places[0]]:
                    by_decayed = vectors.scaled(by_momentum, 1 - options["dampening"])
                    group.put(by_buffer, vectors.scaled(by_momentum, momentum))
                if options["nesterov"]:
                    by_decayed = vectors.total(by_decayed, by_update)
            group.put(by_gradient, vectors.scaled(by_decayed, -1.0 if options["maximize"] else 1.0))
            decayed = vectors.total(group.of(adjoint), by_decayed, options["weight_decay"])
            group.put(by_weights, decayed)
        return by_gradient, by_weights, by_buffer

    def _adam_step(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> tuple[list[Tensor], Pull]:
        new_weights = list(weights)
        jacobian = list(weights)
        for group in self._groups():
            for place in group.places:
                new_weights[place], jacobian[place] = self._adam(
                    group.options, self._state(place), weights[place], gradients[place]
                )

        def pull(adjoint: Sequence[Tensor]) -> list[Tensor]:
            return vectors.entrywise(jacobian, adjoint)

        return new_weights, pull

    def _adam(
        self, options: dict[str, Any], state: dict[str, Any], weight: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return one weight after a step of Adam, and the diagonal derivative by the gradient."""
        if options["amsgrad"]:
            raise ConfigError("InnerOptimizer: amsgrad must be off, got True")
        (beta1, beta2), rate, decay = options["betas"], options["lr"], options["weight_decay"]
        sign = -1.0 if options["maximize"] else 1.0
        gradient = sign * gradient
        # AdamW, and Adam where it is told to, shrink the weights beside the step.
        if options["decoupled_weight_decay"]:
            weight = weight * (1 - rate * decay)
        else:
            gradient = gradient + decay * weight
        # The optimizer counts in float32, too few bits for powers of its decay rates.
        count = 1 + torch.as_tensor(state.get("step", 0), dtype=torch.float64)
        first = (1 - beta1) * gradient
        second = (1 - beta2) * gradient.square()
        if "exp_avg" in state:
            first = first + beta1 * state["exp_avg"]
            second = second + beta2 * state["exp_avg_sq"]
        first, second = first / (1 - beta1**count), second / (1 - beta2**count)
        root = second.sqrt()
        denominator = root + options["eps"]
        slope = (1 - beta1) / (1 - beta1**count) / denominator
        # The derivative of the root is infinite at 0, where its factor, the gradient, is 0 too.
        safe = torch.where(root == 0, torch.ones_like(root), root)
        bend = first * (1 - beta2) * gradient / ((1 - beta2**count) * safe * denominator.square())
        return weight - rate * first / denominator, -rate * sign * (slope - bend)


def clipping(gradients: Sequence[Tensor], limit: float) -> Tensor:
    """Return what norm clipping multiplies a gradient by: ``min(1, limit / |gradient|)``.

    Example:
        >>> clipping([torch.tensor([3.0, 4.0])], 1.0)
        tensor(0.2000)
    """
    length = vectors.norm(gradients)
    return torch.where(length > limit, limit / length, torch.ones_like(length))


def _split(groups: Sequence[_Group], existed: Sequence[bool]) -> list[_Group]:
    """Return the groups, those with and those without momentum apart."""
    parts = []
    for group in groups:
        for there in (True, False):
            places = [place for place in group.places if existed[place] is there]
            if places:
                parts.append(_Group(places, group.options))
    return parts
