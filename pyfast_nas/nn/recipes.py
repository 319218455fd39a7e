"""Recognised candidates: where their tensors are found, and whether they are still what they were.

A recipe owns no tensor. Everything is read from the layers at each call, since parameters may be
replaced, moved or frozen, modes switched and hooks registered at any time.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from pyfast_nas.nn.primitives import SkipConnect
from pyfast_nas.ops import Candidate, Norm, Stage

__all__ = ["NormLayer", "Recipe", "StageLayers"]

_hooks = operator.itemgetter(
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
)
_norm_state = operator.itemgetter("training", "track_running_stats", "eps")
_norm_buffers = operator.itemgetter("running_mean", "running_var")


class NormLayer:
    """A `BatchNorm2d` as a fused node sees it.

    Args:
        layer: The layer.
        before: The convolution in front of it, or None.
    """

    __slots__ = ("before", "buffers", "channels", "had_bias", "own", "parameters")

    def __init__(self, layer: nn.BatchNorm2d, before: nn.Conv2d | None = None) -> None:
        self.before = {} if before is None else before._parameters
        self.had_bias = self.bias is not None
        self.own = layer.__dict__
        self.parameters = layer._parameters
        self.buffers = layer._buffers
        self.channels = layer.num_features

    def watched(self) -> Iterator[tuple[dict, str]]:
        """Yield where everything is found that `read` reads."""
        yield from ((self.own, key) for key in ("training", "track_running_stats", "eps"))
        yield from ((self.parameters, key) for key in ("weight", "bias"))
        yield from ((self.buffers, key) for key in ("running_mean", "running_var"))

    def tracks(self) -> bool:
        """Say whether a pass as of now moves the running statistics."""
        training, tracks, _ = _norm_state(self.own)
        return training and tracks

    @property
    def bias(self) -> Tensor | None:
        """Bias of the convolution in front, which is a part of the running mean."""
        return self.before.get("bias")

    def read(self, rows: "list[NormLayer | None]") -> Norm | None:
        """Return the norm as of now, or None where it is in a state that torch has no use for.

        Args:
            rows: Gets one entry: this layer if the pass moves its running statistics, else None.
        """
        training, tracks, eps = _norm_state(self.own)
        gamma, beta = self.parameters.get("weight"), self.parameters.get("bias")
        mean, var = _norm_buffers(self.buffers)
        if (gamma is None) != (beta is None) or (mean is None) != (var is None):
            return None
        if training and tracks and mean is None:
            return None  # torch counts the batch and keeps nothing else of it
        if self.had_bias and self.bias is None:
            return None  # it may be computed elsewhere now
        if training or mean is None:
            rows.append(self if training and tracks else None)
            return Norm(gamma, beta, None, None, eps)
        if self.bias is not None:
            return None  # in front of given statistics it does not cancel out
        rows.append(None)
        return Norm(gamma, beta, mean, var, eps)


@dataclasses.dataclass(slots=True, eq=False)
class StageLayers:
    """One stage of a convolution candidate: where its tensors are found."""

    depthwise: dict | None  # parameters of the layer, or None without one
    pointwise: dict
    norm: NormLayer
    dilation: int = 1
    shifted: dict | None = None  # of the second convolution of a factorised reduction

    def watched(self) -> Iterator[tuple[dict, str]]:
        """Yield where everything is found that `read` reads."""
        for layer in (self.depthwise, self.pointwise, self.shifted):
            if layer is not None:
                yield from ((layer, key) for key in ("weight", "bias"))
        yield from self.norm.watched()

    def read(self, rows: list[NormLayer | None]) -> Stage | None:
        """Return the stage with the tensors of now, or None where one is missing."""
        taps = None
        if self.depthwise is not None and (taps := _only_weight(self.depthwise)) is None:
            return None
        matrix, norm = self.pointwise.get("weight"), self.norm.read(rows)
        if matrix is None or norm is None:
            return None
        shifted = None
        if self.shifted is not None and (shifted := _only_weight(self.shifted)) is None:
            return None
        return Stage(taps, matrix, norm, self.dilation, shifted, self.norm.bias)


@dataclasses.dataclass(slots=True, eq=False)
class Recipe:
    """A recognised candidate. It owns no tensor: they are read from the layers at each call.

    Attributes:
        module: The candidate.
        kind: As in `pyfast_nas.ops.Candidate`, or ``"zero"``.
        stride: 1 or 2.
        in_channels: Channels it takes; None for any number.
        out_channels: Channels it gives; None for as many as it takes.
        certain: Whether structure alone says what it computes. Without it, a module with a
            ``forward`` of its own is taken to run its children in order, which must be verified.
    """

    module: nn.Module
    kind: str
    stride: int = 1
    in_channels: int | None = None
    out_channels: int | None = None
    certain: bool = True
    stages: tuple[StageLayers, ...] = ()
    norm: NormLayer | None = None
    skip: SkipConnect | None = None
    parts: tuple[dict, ...] = ()
    children: tuple[tuple[dict, tuple[nn.Module, ...]], ...] = ()
    settings: tuple[tuple[dict, Callable, object], ...] = ()
    _watched: tuple[tuple[dict, str], ...] | None = None

    def is_intact(self) -> bool:
        """Say whether the structure is still that which was recognised."""
        for modules, before in self.children:
            if tuple(modules.values()) != before:
                return False
        try:
            for own, read, before in self.settings:
                if read(own) != before:
                    return False
        except KeyError:
            return False
        return True

    def is_replaceable(self) -> bool:
        """Say whether nobody looks on inside: no hook, no ``forward`` set on an instance.

        A skip connection with a DropBlock at work is no identity.
        """
        for own in self.parts:
            if any(_hooks(own)) or "forward" in own:
                return False
        return self.skip is None or self.skip.is_identity

    def read(self, edge: int, rows: list[NormLayer | None]) -> Candidate | None:
        """Return the candidate with the tensors of now, or None where one is missing.

        Args:
            edge: Which input of the node it reads.
            rows: Gets one entry for each norm, in the order of the statistics of the node.
        """
        start = len(rows)
        if self.kind == "conv":
            stages = tuple([stage.read(rows) for stage in self.stages])
            if None not in stages:
                return Candidate("conv", edge, stages)
        elif self.norm is None:
            return Candidate(self.kind, edge)
        elif (norm := self.norm.read(rows)) is not None:
            return Candidate(self.kind, edge, (), norm)
        del rows[start:]
        return None

    def state(self) -> tuple:
        """Return every object that `read` reads: as long as they are the same, so is the result."""
        if self._watched is None:
            layers = [*self.stages, *(() if self.norm is None else (self.norm,))]
            self._watched = tuple(place for layer in layers for place in layer.watched())
        return tuple([held.get(key) for held, key in self._watched])

    @property
    def needs_even_sides(self) -> bool:
        """Whether it is a factorised reduction, which halves even sides only."""
        return any(stage.shifted is not None for stage in self.stages)

    def tracks(self) -> bool:
        """Say whether a pass as of now moves running statistics."""
        norms = [stage.norm for stage in self.stages] + ([self.norm] if self.norm else [])
        return any(norm.tracks() for norm in norms)


def _only_weight(parameters: dict) -> Tensor | None:
    """Return the weight, if the layer has one and no bias."""
    return parameters.get("weight") if parameters.get("bias") is None else None
