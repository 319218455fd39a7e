"""Bytes kept for backward by the modes of MSG-DAS, counted tensor by tensor."""

import contextlib
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pyfast_nas import spaces
from pyfast_nas.algorithms import MSGDAS


class Kept:
    """A tensor that a graph holds on to."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Meter:
    """Bytes of activations that live graphs hold, now and at most."""

    def __init__(self, weights) -> None:
        self.weights = {p.data_ptr() for p in weights}
        self.now = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> Kept:
        # Detached: an output that names its own node would keep the graph alive.
        kept = Kept(tensor.detach())
        if tensor.data_ptr() not in self.weights:
            size = tensor.numel() * tensor.element_size()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(kept, self.release, size)
        return kept

    def release(self, size: int) -> None:
        self.now -= size

    @contextlib.contextmanager
    def watch(self):
        with saved_tensors_hooks(self.pack, lambda kept: kept.tensor):
            yield


def peak(start, image_batch, *, paths: int, mode: str, **options) -> int:
    """Peak of one step on a space whose candidates keep equally much."""
    space = spaces.DARTS(
        channels=4,
        cells=2,
        nodes=2,
        num_classes=3,
        in_channels=1,
        image_size=8,
        operations=("sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7"),
    )
    algorithm = MSGDAS(paths=paths, mode=mode, **options)
    algorithm = start(algorithm, space)
    meter = Meter(algorithm.supernet.parameters())
    with meter.watch():
        algorithm.step(image_batch(0, 16), image_batch(1, 16))
    assert meter.now == 0, "no graph outlives the step"
    return meter.peak


PHASES = {
    "weight step": {"alpha_warmup": 1, "kd_weight": 0},
    "architecture step": {"alpha_warmup": 0, "kd_weight": 0},
    "with guidance": {"alpha_warmup": 0, "kd_warmup": 0, "kd_in_alpha_step": True},
}


@pytest.mark.parametrize("phase", PHASES)
def test_one_after_another_keeps_no_more_than_one_path(phase, start, image_batch):
    peaks = [
        peak(start, image_batch, paths=k, mode="accumulate", **PHASES[phase]) for k in (1, 2, 3)
    ]
    # 5 % is the specification's tolerance.
    assert max(peaks) <= 1.05 * peaks[0]


@pytest.mark.parametrize("phase", PHASES)
def test_joint_grows_by_the_same_bytes_for_every_path(phase, start, image_batch):
    one, two, three = (
        peak(start, image_batch, paths=k, mode="joint", **PHASES[phase]) for k in (1, 2, 3)
    )
    assert two - one == pytest.approx(three - two, rel=0.05)
    assert three > 2 * one


def test_score_function_keeps_next_to_nothing(start, image_batch):
    """Its architecture pass runs without a graph; the weight step is that of one path."""
    score = peak(
        start,
        image_batch,
        paths=2,
        mode="accumulate",
        relaxation="score",
        **PHASES["architecture step"],
    )
    plain = peak(start, image_batch, paths=2, mode="accumulate", **PHASES["weight step"])
    assert score <= 1.05 * plain
