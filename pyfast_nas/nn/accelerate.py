"""The drop-in for models that we did not write: their weighted sums through fused nodes, in place.

A module is replaced by giving it a subclass of its own class, so that parameters, state dict,
hooks, modes and copies are what they were.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyfast_nas.nn.acceleration_report import AccelerateReport, count
from pyfast_nas.nn.forms import Form, guesses, parameters_of_forward
from pyfast_nas.nn.fusion import Hint, Recipes, is_served
from pyfast_nas.nn.mixed_op import MixedOp
from pyfast_nas.nn.recognition import foreign_settings
from pyfast_nas.nn.verification import compare_candidate, compare_form, hint_of

__all__ = ["accelerate", "restore"]

_STATE = "_pyfast_nas"
_SIMPLE = (int, float, str, type(None), torch.dtype, type, Callable)


def accelerate(model: nn.Module) -> AccelerateReport:
    """Run the weighted sums of a model's candidate operations in fused nodes, in place.

    Looks for modules with a ``forward(x, weights)`` and a list of candidates, such as the mixed
    operation of a DARTS supernet, that of PC-DARTS on part of the channels, and a whole cell of
    NAS-Bench-201. Names of classes and attributes do not matter. What a ``forward`` computes does
    not follow from structure: a copy of each module is compared with the fused form on random
    input (outputs, gradients, running statistics; training and evaluation) and what differs is
    left alone and named.

    Parameters stay the same objects and state dict keys do not change; ``train()``, ``eval()``,
    ``to()``, hooks, `copy.deepcopy` and `torch.save` go on working. A candidate with a hook runs
    as a module as long as it has it. The model's own ``forward`` runs wherever no fused node
    serves: on other devices than the CPU, in half precision and under autocast, under
    `torch.compile`, with other arguments.

    Args:
        model: Any model; `restore` undoes it.

    Returns:
        What was replaced, what was not, and why. Print it.

    Raises:
        TypeError: If ``model`` is not a module.

    Example:
        >>> class Edge(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ops = nn.ModuleList([nn.Identity(), nn.MaxPool2d(3, 1, 1)])
        ...     def forward(self, x, weights):
        ...         return sum(w * op(x) for w, op in zip(weights, self.ops))
        >>> model = nn.ModuleDict({"edge": Edge()})
        >>> print(accelerate(model))
        replaced 1 module
          2 of 2 candidates in a fused node: edge
        >>> restore(model)
        1
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    report = AccelerateReport({}, {}, {}, ())
    seen: dict[object, _Verdict] = {}
    for name, module in list(model.named_modules()):
        if any(_is_inside(name, other) for other in report.replaced):
            continue
        if isinstance(module, _Accelerated):
            report.replaced[name] = "replaced before, its candidates"
            continue
        if isinstance(module, MixedOp | torch.jit.ScriptModule):
            continue
        key = _signature(module)
        verdict = seen.get(key) if key is not None else None
        if verdict is None:
            verdict = _judge(module)
            if key is not None:
                seen[key] = verdict
        _apply(module, name, verdict, report)
    return dataclasses.replace(report, notes=tuple(_notes(model, report)))


def restore(model: nn.Module) -> int:
    """Undo `accelerate` and return how many modules run their own ``forward`` again.

    Args:
        model: A model, or a copy of one.

    Example:
        >>> restore(nn.Linear(1, 1))
        0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    restored = 0
    for module in model.modules():
        if isinstance(module, _Accelerated):
            module.__class__ = type(module)._original
            del module.__dict__[_STATE]
            restored += 1
    return restored


@dataclasses.dataclass(frozen=True)
class _Verdict:
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


@dataclasses.dataclass
class _State:
    """What an accelerated module carries beside what it is."""

    form: Form
    recipes: Recipes
    names: tuple[str, ...]
    values: object

    def serves(self, module: nn.Module, x: object, weights: object) -> bool:
        """Say whether this call is of the kind that was compared."""
        return (
            isinstance(x, Tensor)
            and isinstance(weights, Tensor)
            and weights.shape == self.form.shape(module)
            and is_served(x, weights)
            and (not self.names or _values(module, self.names) == self.values)
        )


class _Accelerated:
    """Mixed into the class of a module: the fused form where it serves, else what was there."""

    _original: type[nn.Module]

    def forward(self, *arguments: Any, **named: Any) -> Any:
        if len(arguments) == 2 and not named and not torch.compiler.is_compiling():
            state = self.__dict__[_STATE]
            if state.serves(self, *arguments):
                return state.form.run(self, *arguments, state.recipes)
        return super().forward(*arguments, **named)

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Name the class that can be imported; the subclass is made again from it."""
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, tuple) and reduced[1][:1] == (type(self),):
            made_by, arguments, *rest = reduced
            return _remake, (made_by, type(self)._original, *arguments[1:]), *rest
        return reduced


def _remake(made_by: Callable, original: type[nn.Module], *arguments: object) -> nn.Module:
    return made_by(_accelerated(original), *arguments)


@functools.cache
def _accelerated(original: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of ``original`` that runs fused forms."""
    names = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_original": original,
    }
    return type(original.__name__, (_Accelerated, original), names)


def _judge(module: nn.Module) -> _Verdict:
    """Find the form that a module computes, and compare."""
    forms = list(guesses(module))
    required = parameters_of_forward(module) if forms else ()
    if len(required) < 2:
        return _Verdict()
    reasons: list[str] = []
    for form in forms:
        channels = _channels(form.candidates(module).values())
        hints, plain = _hints(module, form, channels)
        fused = len(form.candidates(module)) - len(plain)
        if not fused:
            continue
        if len(required) != 2:
            return _Verdict(why=f"its forward takes ({', '.join(required)}), not (x, weights)")
        if "forward" in vars(module):
            return _Verdict(why="its forward was set on the instance")
        why = compare_form(module, form, hints, channels * form.parts)
        if why is None:
            return _Verdict(form, hints, fused, plain)
        reasons.append(why)
    # A guess that ran says more than one that could not.
    return _Verdict(why=min(reasons, key=lambda why: "fails on" in why, default=""))


def _hints(module: nn.Module, form: Form, channels: int) -> tuple[dict[int, Hint], dict[str, str]]:
    """Return how to look at each candidate, and which ones run as modules and why."""
    hints: dict[int, Hint] = {}
    plain: dict[str, str] = {}
    for place, (name, candidate) in enumerate(form.candidates(module).items()):
        hint = hint_of(candidate, channels)
        if hint == "plain":
            plain[name] = "not recognised"
        elif hint is not None and (why := compare_candidate(candidate, hint, channels)):
            plain[name], hint = _of_candidate(why), "plain"
        if hint is not None:
            hints[place] = hint
    return hints, plain


def _of_candidate(why: str) -> str:
    return why.replace("from the weighted sum of its candidates", "from its layers in order")


def _channels(candidates: Iterator[nn.Module]) -> int:
    """Return the channels that the candidates take: those of the first layer that says it."""
    for candidate in candidates:
        for layer in candidate.modules():
            if isinstance(layer, nn.Conv2d):
                return layer.in_channels
            if isinstance(layer, nn.BatchNorm2d):
                return layer.num_features
    return 4


def _apply(module: nn.Module, name: str, verdict: _Verdict, report: AccelerateReport) -> None:
    if verdict.form is None:
        if verdict.why:
            report.left_alone[name or "the model"] = verdict.why
        return
    settings = _watched(module)
    state = _State(verdict.form, Recipes(verdict.hints), settings, _values(module, settings))
    try:
        module.__class__ = _accelerated(type(module))
    except TypeError as error:  # a class with slots of its own
        report.left_alone[name or "the model"] = f"its class cannot be extended: {error}"
        return
    module.__dict__[_STATE] = state
    total = verdict.fused + len(verdict.plain)
    report.replaced[name] = f"{verdict.fused} of {count(range(total), 'candidate')}"
    for candidate, why in verdict.plain.items():
        report.plain[f"{name}.{candidate}" if name else candidate] = why


def _notes(model: nn.Module, report: AccelerateReport) -> Iterator[str]:
    if ours := sum(isinstance(module, MixedOp) for module in model.modules()):
        yield f"{count(range(ours), 'pyfast_nas MixedOp')} run in fused nodes anyway"
    elif not report.replaced and not report.left_alone:
        yield "no module has a list of candidates and a forward(x, weights)"
    devices = {p.device.type for p in model.parameters()} - {"cpu"}
    if report.replaced and devices:
        yield f"on {', '.join(sorted(devices))} the model's own forward runs: no fused node there"


def _watched(module: nn.Module) -> tuple[str, ...]:
    """Return the settings of a module whose change would mean another computation."""
    return tuple(
        name for name, value in foreign_settings(module).items() if _frozen(value) is not None
    )


def _values(module: nn.Module, names: tuple[str, ...]) -> object:
    try:
        return operator.itemgetter(*names)(module.__dict__) if names else None
    except KeyError:
        return None


def _signature(module: nn.Module) -> object | None:
    """Return what two modules share that compute the same up to their parameters' values."""
    parts = []
    for name, part in module.named_modules():
        own = {k: _frozen(v) for k, v in foreign_settings(part).items()}
        if any(value is None for value in own.values()):
            return None
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        shapes = tuple((k, tuple(t.shape), t.requires_grad) for k, t in tensors)
        parts.append((name, type(part), tuple(own.items()), shapes))
    return tuple(parts)


def _frozen(value: object) -> object | None:
    """Return ``value`` as something that can be compared and hashed, or None."""
    if value is None:
        return "None"
    if isinstance(value, list | tuple):
        items = tuple(_frozen(item) for item in value)
        return None if None in items else (type(value), items)
    if isinstance(value, dict):
        items = tuple((str(key), _frozen(item)) for key, item in value.items())
        return None if any(item is None for _, item in items) else items
    return (type(value), value) if isinstance(value, (*_SIMPLE[:-1], torch.device)) else None


def _is_inside(name: str, other: str) -> bool:
    return name != other and (not other or name.startswith(other + "."))
