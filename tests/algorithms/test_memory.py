"""Bytes kept for backward by forms of the searches, counted tensor by tensor."""

import collections
import contextlib
import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pyfast_nas import _ext, spaces
from pyfast_nas.algorithms import MSGDAS, ProxylessNAS


class Kept:
    """A tensor that a graph holds on to."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Meter:
    """Bytes of activations that live graphs hold, now and at most."""

    def __init__(self, weights) -> None:
        self.weights = {p.data_ptr() for p in weights}
        self.holders: collections.Counter[int] = collections.Counter()
        self.now = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> Kept:
        # Detached: an output that names its own node would keep the graph alive.
        kept = Kept(tensor.detach())
        place = tensor.data_ptr()
        if place not in self.weights:
            size = tensor.numel() * tensor.element_size()
            if not self.holders[place]:  # what two layers keep is there once
                self.now += size
                self.peak = max(self.peak, self.now)
            self.holders[place] += 1
            weakref.finalize(kept, self.release, place, size)
        return kept

    def release(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        if not self.holders[place]:
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


def proxyless_peak(start, image_batch, form: str, candidates: int) -> int:
    """Peak of an architecture step in plain modules, which keep what their candidates make."""
    space = spaces.DARTS(
        channels=4,
        cells=2,
        nodes=2,
        num_classes=3,
        in_channels=1,
        image_size=8,
        operations=("sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7")[:candidates],
    )
    options = {"alpha_interval": 1, "alpha_warmup": 0.0, "alpha_rest": 0}
    algorithm = start(ProxylessNAS(gradient=form, **options), space)
    algorithm._weight_step = lambda *_: {}
    meter = Meter(algorithm.supernet.parameters())
    with _ext.use("reference"), meter.watch():
        algorithm.step(image_batch(0, 16), image_batch(1, 16))
    assert meter.now == 0, "no graph outlives the step"
    return meter.peak


def test_proxylessnas_keeps_one_two_or_all_candidates(start, image_batch):
    peaks = {
        (form, count): proxyless_peak(start, image_batch, form, count)
        for form in ("full", "full_v2", "two")
        for count in (2, 3)
    }
    one_candidate = peaks["full", 3] - peaks["full", 2]
    one_path = peaks["full", 2] - one_candidate
    assert one_candidate > 0.2 * peaks["full", 3]
    for count in (2, 3):
        assert peaks["two", count] == pytest.approx(one_path + one_candidate, rel=0.01)
        # Beside the path, what goes into nodes: ReLUs of candidates do not keep it.
        assert one_path <= peaks["full_v2", count] < one_path + 0.2 * one_candidate
    assert peaks["full_v2", 3] == pytest.approx(peaks["full_v2", 2], rel=0.01)
