"""Candidates of modules through one fused node: what may go in, the call, running statistics.

What a fused node cannot take is left to the caller, who runs it as a plain module beside it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module

from pyfast_nas import ops
from pyfast_nas.nn.recipes import NormLayer, Recipe
from pyfast_nas.nn.recognition import foreign_leaf, recognise, signature

__all__ = [
    "FusedCall",
    "Hint",
    "Recipes",
    "Sum",
    "Term",
    "chosen",
    "gather",
    "index_of",
    "is_served",
    "plan_cell",
    "run_alone",
    "zero_places",
]

# How to look at a candidate whose structure alone does not say what it computes: run its children
# in order ("wrapper"), never ("plain"), or as what it was seen to do (kind, stride).
Hint = str | tuple[str, int]


class Recipes:
    """The recipes of a list of candidates, looked up again where the structure has changed.

    A copy looks everything up again: recipes hold on to the layers of one model.

    Args:
        hints: By place; they hold as long as the structure and the settings of the candidate do.
        signatures: Of the candidates that the hints are about, by place; without one it is the
            candidate that is looked up first.
    """

    __slots__ = ("_hints", "_known", "_signatures")

    def __init__(
        self, hints: dict[int, Hint] | None = None, signatures: dict[int, tuple] | None = None
    ) -> None:
        self._hints = dict(hints or {})
        self._signatures = dict(signatures or {})
        self._known: dict[int, tuple[nn.Module, Recipe | None]] = {}

    def of(self, place: int, module: nn.Module) -> Recipe | None:
        """Return the recipe of ``module``, the candidate at ``place``."""
        known = self._known.get(place)
        if known is not None:
            if known[0] is module and (known[1] is None or known[1].is_intact()):
                return known[1]
            self._hints.pop(place, None)
        if place in self._hints:
            now = signature(module)
            if self._signatures.setdefault(place, now) != now:
                del self._hints[place]
        recipe = self._look_up(self._hints.get(place), module)
        self._known[place] = module, recipe
        return recipe

    @staticmethod
    def _look_up(hint: Hint | None, module: nn.Module) -> Recipe | None:
        if hint == "plain":
            return None
        if isinstance(hint, tuple):
            return foreign_leaf(module, *hint)
        return recognise(module, wrappers=hint == "wrapper")

    def __reduce__(self) -> tuple:
        broken = {
            place
            for place, (_, recipe) in self._known.items()
            if recipe is not None and not recipe.is_intact()
        }
        hints = {place: hint for place, hint in self._hints.items() if place not in broken}
        return Recipes, (hints, self._signatures)


class Term(NamedTuple):
    """One candidate that runs.

    Attributes:
        edge: Which input it reads.
        module: The candidate.
        recipe: What it was recognised as, or None.
    """

    edge: int
    module: nn.Module
    recipe: Recipe | None


class Sum(NamedTuple):
    """One node of a cell.

    Attributes:
        terms: What it sums; an edge is a state: the inputs come first, then what stands before.
        weights: One weight for each term.
        again: Whether backward computes it again, rather than keeping it.
    """

    terms: Sequence[Term]
    weights: Tensor
    again: bool = False


class FusedCall:
    """What one fused node takes of a sum.

    Attributes:
        places: Which of the terms it takes.
        recipes: Those of the terms it takes.
        rest: Which of them run as plain modules.
        size: Shape of what it gives.
    """

    __slots__ = (
        *("places", "rest", "_candidates", "_inputs", "_norms", "_owners", "_slots", "_strides"),
        *("recipes", "size"),
    )

    def __init__(self) -> None:
        self.places: list[int] = []
        self.rest: list[int] = []
        self._candidates: list[ops.Candidate] = []
        self._inputs: list[Tensor] = []
        self._strides: list[int] = []
        self._slots: dict[tuple[int, int], int] = {}  # (edge, stride) -> input of the node
        self._norms: list[NormLayer | None] = []  # by row of statistics: what they move
        self._owners: list[int] = []  # by row of statistics: of which candidate
        self.recipes: dict[Recipe, None] = {}
        self.size: tuple[int, ...] | None = None

    def take(self, place: int, recipe: Recipe, edge: int, x: Tensor) -> bool:
        """Take a term if its layers are in a state that is served, and say so."""
        # A module that runs twice moves its statistics twice, one time after the other.
        if recipe in self.recipes:
            return False
        slot = self._slots.get((edge, recipe.stride), len(self._inputs))
        candidate = recipe.read(slot, self._norms)
        if candidate is None:
            return False
        if slot == len(self._inputs):
            self._slots[edge, recipe.stride] = slot
            self._inputs.append(x)
            self._strides.append(recipe.stride)
        self.recipes[recipe] = None
        self._owners += [len(self._candidates)] * (len(self._norms) - len(self._owners))
        self._candidates.append(candidate)
        self.places.append(place)
        return True

    def fits(self, recipe: Recipe, x: Tensor) -> bool:
        """Say whether a candidate takes this input and gives the shape that the others give."""
        samples, channels, height, width = x.shape
        stride = recipe.stride
        size = (
            *(samples, recipe.out_channels or channels),
            *(-(-height // stride), -(-width // stride)),
        )
        if self.size is None:
            self.size = size
        if recipe.needs_even_sides and (height % 2 or width % 2):
            return False
        return size == self.size and recipe.in_channels in (None, channels)

    @property
    def tracks(self) -> bool:
        """Whether running statistics move."""
        return any(self._norms)

    def run(self, weights: Tensor, selected: Tensor | None = None) -> Tensor:
        """Return the weighted sum, and move the running statistics of what ran."""
        y, statistics = ops.fused_node(
            self._inputs, weights, self._candidates, self._strides, selected
        )
        self.track(statistics, selected)
        return y

    def as_node(self, weights: Tensor, again: bool) -> ops.Node:
        """Return it as a node of a cell, of which its edges are states.

        Args:
            weights: One weight for each term that was taken.
            again: Whether backward computes its state again.
        """
        sources = tuple(edge for edge, _ in self._slots)
        return ops.Node(sources, tuple(self._strides), self._candidates, weights, again)

    def track(self, statistics: Tensor, selected: Tensor | None = None) -> None:
        """Move the running statistics of what ran with these batch statistics."""
        if not self.tracks:
            return
        samples, _, height, width = self.size
        rows = [row for row, layer in enumerate(self._norms) if layer is not None]
        if selected is not None:
            selected = chosen(selected, [self._owners[row] for row in rows])
        if len(rows) < len(self._norms):
            statistics = torch.stack([statistics[row] for row in rows])
        layers = [self._norms[row] for row in rows]
        _track(statistics, layers, samples * height * width, selected)


def is_served(x: Tensor, weights: Tensor) -> bool:
    """Say whether a fused node serves this call at all.

    Under autocast an input that has another dtype goes through plain modules, which choose their
    dtypes one by one; a trace wants plain operations; a global hook wants to see every module.
    """
    return (
        not torch.compiler.is_compiling()
        and ops.serves_fused_node(x)
        and weights.device == x.device
        and _fits(x, weights)
        and torch._C._get_tracing_state() is None
        and not (
            _module._global_forward_hooks
            or _module._global_forward_pre_hooks
            or _module._global_backward_hooks
            or _module._global_backward_pre_hooks
        )
    )


def _fits(x: Tensor, weights: Tensor) -> bool:
    """Say whether the dtypes are those that a node has: mixed ones only under autocast."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x.dtype is weights.dtype
    return x.dtype is torch.get_autocast_dtype(kind) and weights.dtype in (x.dtype, torch.float32)


def gather(xs: Sequence[Tensor], terms: Sequence[Term], weights: Tensor) -> FusedCall | None:
    """Return what one fused node takes of a sum, or None where that is nothing.

    A term weighted by exactly zero runs nowhere if nobody can tell: neither its weight nor its
    parameters get a gradient, and it moves no running statistics.

    Args:
        xs: Inputs of the edges.
        terms: Everything that runs; zeros are left out.
        weights: One weight for each term.
    """
    call = FusedCall()
    zeros = zero_places(weights)
    idle = []
    for place, (edge, module, recipe) in enumerate(terms):
        x = xs[edge]
        if recipe is None or x.dim() != 4 or not recipe.is_replaceable():
            call.rest.append(place)
        elif recipe.kind == "zero":
            continue
        elif x.dtype is not xs[0].dtype or not call.fits(recipe, x):
            return None  # the plain modules say what is wrong
        elif place in zeros and not recipe.tracks() and not _learns(module):
            idle.append((place, recipe, edge, x))
        elif not call.take(place, recipe, edge, x):
            call.rest.append(place)
    if idle and not call.places and not call.rest:
        call.take(*idle[0])  # somebody has to say what shape the zeros have
    if not call.places or (call.tracks and torch._C._are_functorch_transforms_active()):
        return None
    return call


def plan_cell(
    inputs: Sequence[Tensor], sums: Sequence[Sum]
) -> tuple[list[FusedCall], list[ops.Node]] | None:
    """Return the fused nodes of a cell, or None where a part of it runs as a plain module.

    Args:
        inputs: Inputs of the cell, or tensors like them: their values are not read.
        sums: Its nodes, in order.
    """
    calls, nodes, states = [], [], list(inputs)
    for terms, weights, again in sums:
        call = gather(states, terms, weights)
        if call is None or call.rest:
            return None
        taken = chosen(weights, call.places, len(terms))
        calls.append(call)
        nodes.append(call.as_node(taken, again))
        states.append(inputs[0].new_empty(()).expand(call.size))
    return calls, nodes


def run_alone(module: nn.Module, recipe: Recipe | None, x: Tensor) -> Tensor:
    """Run one module, through a fused node of its own where it is recognised and served."""
    if recipe is not None and is_served(x, x):
        weights = x.new_ones(1)
        call = gather([x], [Term(0, module, recipe)], weights)
        if call is not None:
            return call.run(weights)
    return module(x)


def zero_places(weights: Tensor) -> frozenset[int]:
    """Return where a weight is exactly zero and no derivative of it is asked for."""
    if (
        type(weights) is not Tensor  # without values, perhaps
        or weights.device.type != "cpu"  # to ask another device is to wait for it
        or weights.requires_grad
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return frozenset()
    return frozenset(place for place, value in enumerate(weights.tolist()) if value == 0)


def chosen(weights: Tensor, places: Sequence[int], out_of: int = -1, again: bool = True) -> Tensor:
    """Return the weights at some places of a vector: all as they are, if there are ``out_of``.

    The other places get a gradient of zero.

    Args:
        weights: The vector.
        places: Which of them.
        out_of: How many there are, where that may be all.
        again: Whether the same places will be asked for again. Their index then stays on the
            device: to bring it to a GPU each time is to wait for the GPU, and no CUDA graph can
            hold that.

    Example:
        >>> chosen(torch.tensor([1.0, 2.0, 3.0]), [2, 0])
        tensor([3., 1.])
    """
    if len(places) == out_of:
        return weights
    if (
        type(weights) is not Tensor  # without values, perhaps
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
    ):
        return weights[list(places)]
    if not again:
        return weights[torch.tensor(places).to(weights.device, non_blocking=True)]
    return weights[index_of(tuple(places), weights.device)]


@functools.lru_cache(maxsize=4096)
def index_of(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the places on a device: the same tensor each time, see `chosen`."""
    with torch.inference_mode(False):  # or nobody could differentiate through it later
        return torch.tensor(places, device=device)


def _learns(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())


@torch.no_grad()
def _track(
    statistics: Tensor, layers: Sequence[NormLayer], values: int, selected: Tensor | None
) -> None:
    """Move running statistics as `torch.nn.BatchNorm2d` does: unbiased variance, one more batch.

    Args:
        statistics: Mean and biased variance of every norm, ``[norms, 2, C]``.
        layers: The layers that they move.
        values: Values per channel that they were taken over.
        selected: Which of the layers ran, ``[norms]``; None for all.
    """
    counters = [layer.buffers["num_batches_tracked"] for layer in layers]
    if counted := [counter for counter in counters if counter is not None]:
        batches: int | list[Tensor] = 1
        if selected is not None:
            ran = zip(counters, selected.to(torch.int64).unbind(), strict=True)
            batches = [batch for counter, batch in ran if counter is not None]
        torch._foreach_add_(counted, batches)
    momenta = [_momentum(*pair) for pair in zip(layers, counters, strict=True)]
    momentum: float | Tensor = momenta[0]
    if momenta.count(momentum) < len(momenta):
        momentum = torch.stack([statistics.new_full((1,), each) for each in momenta])
    running = [layer.buffers[name] for layer in layers for name in ("running_mean", "running_var")]
    # torch moves them in double precision too, whatever their dtype.
    before = torch.stack(running).to(statistics.dtype).view(statistics.shape)
    mean, var = statistics.unbind(1)
    if any(layer.bias is not None for layer in layers):
        # The statistics are those without it.
        nothing = mean.new_zeros(mean.shape[1])
        biases = [nothing if b is None else b for b in (layer.bias for layer in layers)]
        mean = mean + torch.stack(biases)
    unbiased = values / (values - 1)
    new = torch.stack([mean * momentum, var * (unbiased * momentum)], 1)
    old = 1 - momentum if isinstance(momentum, float) else (1 - momentum).unsqueeze(2)
    after = before * old + new
    if selected is not None:
        after = torch.where(selected.view(-1, 1, 1), after, before)
    torch._foreach_copy_(running, list(after.to(running[0].dtype).view(len(running), -1).unbind()))


def _momentum(layer: NormLayer, counter: Tensor | None) -> float:
    """Return the weight of this batch: of all batches so far alike where momentum is None."""
    momentum = layer.own["momentum"]
    if momentum is not None:
        return momentum
    return 0.0 if counter is None else 1.0 / max(float(counter), 1.0)
