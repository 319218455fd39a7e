"""Passes that leave no trace in the running statistics of normalisation layers."""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["frozen_statistics"]


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let normalisation layers use batch statistics and leave their running ones untouched.

    For passes that must leave no trace: of the teacher, on validation data, at perturbed weights.

    Args:
        model: Any module; its layers' modes and flags are restored, also after an exception.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(2)
        >>> with frozen_statistics(norm):
        ...     y = norm(torch.ones(4, 2))
        >>> norm.running_mean, int(norm.num_batches_tracked)
        (tensor([0., 0.]), 0)
    """
    before: list[tuple[dict, dict]] = []
    try:
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                _set(layer.__dict__, before, training=True, track_running_stats=False)
            elif isinstance(layer, _InstanceNorm):
                # An instance norm updates whatever buffers it has, whatever its flags say.
                _set(layer.__dict__, before, track_running_stats=False)
                _set(layer._buffers, before, running_mean=None, running_var=None)
        yield
    finally:
        for place, values in reversed(before):
            place.update(values)


def _set(place: dict, before: list[tuple[dict, dict]], **values) -> None:
    before.append((place, {key: place[key] for key in values}))
    place.update(values)
