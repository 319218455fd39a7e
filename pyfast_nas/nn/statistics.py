"""Passes that leave no trace in the running statistics of normalisation layers."""

import contextlib
from collections.abc import Iterator

from torch import nn

__all__ = ["frozen_statistics"]


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let normalisation layers use batch statistics and leave their running ones untouched.

    For passes that must leave no trace: of the teacher, on validation data, at perturbed weights.

    Args:
        model: Any module; its own mode and every flag are restored, also after an exception.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(2)
        >>> with frozen_statistics(norm):
        ...     y = norm(torch.ones(4, 2))
        >>> norm.running_mean, int(norm.num_batches_tracked)
        (tensor([0., 0.]), 0)
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training = True
            layer.track_running_stats = False
        yield
    finally:
        for layer, (training, track) in zip(layers, before, strict=True):
            layer.training = training
            layer.track_running_stats = track
