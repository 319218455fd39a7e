"""What the settings of a module that we did not write say: is it like another, has it changed."""

import operator

import torch
from torch import nn

from pyfast_nas.nn.recognition import foreign_settings

__all__ = ["STATE", "signature", "values_of", "watched"]

# Where a replaced module keeps what it carries beside what it is: no setting of its own class.
STATE = "_pyfast_nas"
_SIMPLE = (int, float, str, type(None), torch.dtype, type, torch.device)


def watched(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the settings whose change would mean another computation.

    Example:
        >>> watched(nn.Dropout(0.5))
        ('p', 'inplace')
    """
    return tuple(name for name, value in _settings(module).items() if _frozen(value) is not None)


def values_of(module: nn.Module, names: tuple[str, ...]) -> object:
    """Return the settings of these names, to be compared, or None where one is missing.

    Example:
        >>> values_of(nn.Dropout(0.5), ("p", "inplace")), values_of(nn.Dropout(), ("size",))
        ((0.5, False), None)
    """
    try:
        return operator.itemgetter(*names)(module.__dict__) if names else None
    except KeyError:
        return None


def signature(module: nn.Module) -> object | None:
    """Return what two modules share that compute the same up to their parameters' values.

    Returns:
        Something that can be compared and hashed, or None where a setting cannot.

    Example:
        >>> signature(nn.Linear(2, 3)) == signature(nn.Linear(2, 3))
        True
        >>> signature(nn.Linear(2, 3)) == signature(nn.Linear(2, 4))
        False
    """
    parts = []
    for name, part in module.named_modules():
        own = {k: _frozen(v) for k, v in _settings(part).items()}
        if any(value is None for value in own.values()):
            return None
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        shapes = tuple((k, tuple(t.shape), t.requires_grad) for k, t in tensors)
        parts.append((name, type(part), tuple(own.items()), shapes))
    return tuple(parts)


def _settings(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in foreign_settings(module).items() if name != STATE}


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
    return (type(value), value) if isinstance(value, _SIMPLE) else None
