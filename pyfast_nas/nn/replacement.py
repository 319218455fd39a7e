"""Modules that run a fused form where it serves, and else what was there.

Such a module is given a subclass of its own class, so that parameters, state dict, hooks, modes and
copies are what they were.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyfast_nas.nn.forms import Form
from pyfast_nas.nn.fusion import Recipes, is_served
from pyfast_nas.nn.settings import STATE, values_of, watched

__all__ = ["Replaced", "State", "form_of", "put_back", "replace", "unseen_state"]

_hooks = operator.itemgetter(
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
)


@dataclasses.dataclass
class State:
    """What a replaced module carries beside what it is.

    Attributes:
        form: What its ``forward`` computes.
        recipes: Of the candidates, by place.
        names: Its settings that are watched.
        values: What they were when the form was compared.
    """

    form: Form
    recipes: Recipes
    names: tuple[str, ...]
    values: object

    def is_current(self, module: nn.Module) -> bool:
        """Say whether the settings of ``module`` are still those that were compared."""
        return not self.names or values_of(module, self.names) == self.values

    def serves(self, module: nn.Module, arguments: tuple) -> bool:
        """Say whether this call is of the kind that was compared."""
        *xs, weights = arguments
        return (
            all(isinstance(argument, Tensor) for argument in arguments)
            and weights.shape == self.form.shape(module)
            and all(is_served(x, weights) for x in xs)
            and self.is_current(module)
            and self.form.fits(module, *xs)
        )


class Replaced:
    """Mixed into the class of a module: the fused form where it serves, else what was there."""

    _original: type[nn.Module]

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run the form if this call is of the kind that was compared."""
        if not named and not torch.compiler.is_compiling():
            state = self.__dict__[STATE]
            form = state.form
            if len(arguments) == len(form.strides) + 1 and state.serves(self, arguments):
                return form.run(self, *arguments, state.recipes)
        return super().forward(*arguments, **named)

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Name the class that can be imported; the subclass is made again from it."""
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, tuple) and reduced[1][:1] == (type(self),):
            made_by, arguments, *rest = reduced
            return _remake, (made_by, type(self)._original, *arguments[1:]), *rest
        return reduced


def replace(module: nn.Module, form: Form, recipes: Recipes) -> None:
    """Make ``module`` run a form that it was shown to compute.

    Raises:
        TypeError: If its class cannot be extended: one with slots of its own.
    """
    names = watched(module)
    for place, candidate in enumerate(form.candidates(module).values()):
        # At once: what a candidate was seen to do says nothing of another put in its place before
        # the first call.
        recipes.of(place, candidate)
    state = State(form, recipes, names, values_of(module, names))
    module.__class__ = _replaced(type(module))
    module.__dict__[STATE] = state


def put_back(model: nn.Module) -> int:
    """Make all modules inside ``model`` run their own ``forward``; return how many did not.

    Example:
        >>> put_back(nn.Linear(1, 1))
        0
    """
    found = [module for module in model.modules() if isinstance(module, Replaced)]
    for module in found:
        module.__class__ = type(module)._original
        del module.__dict__[STATE]
    return len(found)


def form_of(module: Replaced) -> Form:
    """Return what a replaced module computes."""
    return module.__dict__[STATE].form


def unseen_state(module: nn.Module, *, despite_hooks: bool = False) -> State | None:
    """Return what a replaced module carries if nobody can tell whether it is called.

    Args:
        module: Any module.
        despite_hooks: Whether to pass over hooks, which come and go.

    Returns:
        None where the module is not replaced, has a hook or a ``forward`` set on the instance, or
        other settings than those that were compared.

    Example:
        >>> unseen_state(nn.Linear(1, 1)) is None
        True
    """
    own = module.__dict__
    if not isinstance(module, Replaced) or "forward" in own:
        return None
    if not despite_hooks and any(_hooks(own)):
        return None
    state = own[STATE]
    return state if state.is_current(module) else None


def _remake(made_by: Callable, original: type[nn.Module], *arguments: object) -> nn.Module:
    return made_by(_replaced(original), *arguments)


@functools.cache
def _replaced(original: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of ``original`` that runs fused forms."""
    names = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_original": original,
    }
    return type(original.__name__, (Replaced, original), names)
