"""What is to be done with a module that we did not write: which form it has, or why none."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from pyfast_nas.nn.cell_forms import cell_guesses
from pyfast_nas.nn.forms import Form, guesses, parameters_of_forward
from pyfast_nas.nn.fusion import Hint, Recipes
from pyfast_nas.nn.verification import compare_candidate, compare_form, hint_of, stride_of

__all__ = ["Verdict", "judge", "judge_cell"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to be done with a module, and with all that are built like it.

    Attributes:
        form: What it computes, or None to leave it alone.
        hints: How to look at its candidates, by place.
        fused: How many of them a fused node takes.
        plain: Name of each that runs as a module, inside the module -> why.
        why: Why it is left alone; empty where it does not look like a sum at all.
    """

    form: Form | None = None
    hints: dict[int, Hint] = dataclasses.field(default_factory=dict)
    fused: int = 0
    plain: dict[str, str] = dataclasses.field(default_factory=dict)
    why: str = ""


def judge(module: nn.Module) -> Verdict:
    """Find the form in which a module sums its candidates, and compare.

    Example:
        >>> judge(nn.ReLU()).form is None
        True
    """
    forms = list(guesses(module))
    required = parameters_of_forward(module) if forms else ()
    if len(required) < 2:
        return Verdict()
    reasons: list[str] = []
    for form in forms:
        candidates = form.candidates(module)
        channels = _channels(candidates.values())
        hints, plain = _hints(candidates, [channels] * len(candidates))
        fused = len(candidates) - len(plain)
        if not fused:
            continue
        if why := _refusal(module, required, ("x", "weights")):
            return Verdict(why=why)
        why = compare_form(module, form, hints, [channels * form.parts])
        if why is None:
            return Verdict(form, hints, fused, plain)
        reasons.append(why)
    return Verdict(why=_best(reasons))


def judge_cell(module: nn.Module) -> Verdict:
    """Find the form of a cell whose edges are replaced, and compare.

    Example:
        >>> judge_cell(nn.ReLU()).form is None
        True
    """
    forms = list(cell_guesses(module))
    required = parameters_of_forward(module) if forms else ()
    inputs = len(forms[0].strides) if forms else 0
    if len(required) <= inputs:
        return Verdict()
    names = ("x",) if inputs == 1 else ("s0", "s1")
    if why := _refusal(module, required, (*names, "weights")):
        return Verdict(why=why)
    reasons: list[str] = []
    for form in forms:
        layers = form.candidates(module)
        width = _channels(part for edge in form.edges(module) for part in edge.children())
        channels = [_channels([layer], width) for layer in layers.values()] or [width] * inputs
        pairs = zip(layers.values(), channels, strict=False)
        strides = tuple(stride_of(layer, width) for layer, width in pairs) or form.strides
        if None in strides:
            continue
        form = dataclasses.replace(form, strides=strides)
        hints, plain = _hints(layers, channels)
        for place, (name, layer) in enumerate(layers.items()):
            recipe = Recipes(hints).of(place, layer)
            # A node that holds nothing but an identity or a pooling would only copy.
            if recipe is not None and recipe.kind != "conv":
                hints[place], plain[name] = "plain", "it has no convolution"
        why = compare_form(module, form, hints, channels)
        if why is None:
            return Verdict(form, hints, len(layers) - len(plain), plain)
        reasons.append(why)
    return Verdict(why=_best(reasons))


def _refusal(module: nn.Module, required: Sequence[str], arguments: Sequence[str]) -> str:
    """Say why a module that looks right is not even compared; nothing where it may be."""
    if len(required) != len(arguments):
        return f"its forward takes ({', '.join(required)}), not ({', '.join(arguments)})"
    if "forward" in vars(module):
        return "its forward was set on the instance"
    return ""


def _best(reasons: Sequence[str]) -> str:
    """Return what says most: of a guess that ran, with the right shape, if there is one."""
    return min(reasons, key=lambda why: ("fails on" in why, "in shape" in why), default="")


def _hints(
    candidates: Mapping[str, nn.Module], channels: Sequence[int]
) -> tuple[dict[int, Hint], dict[str, str]]:
    """Return how to look at each candidate, and which ones run as modules and why."""
    hints: dict[int, Hint] = {}
    plain: dict[str, str] = {}
    for place, ((name, candidate), width) in enumerate(
        zip(candidates.items(), channels, strict=False)
    ):
        hint = hint_of(candidate, width)
        if hint == "plain":
            plain[name] = "not recognised"
        elif hint is not None and (why := compare_candidate(candidate, hint, width)):
            plain[name], hint = why, "plain"
        if hint is not None:
            hints[place] = hint
    return hints, plain


def _channels(candidates: Iterable[nn.Module], otherwise: int = 4) -> int:
    """Return the channels that the candidates take: those of the first layer that says it."""
    for candidate in candidates:
        for layer in candidate.modules():
            if isinstance(layer, nn.Conv2d):
                return layer.in_channels
            if isinstance(layer, nn.BatchNorm2d):
                return layer.num_features
    return otherwise
