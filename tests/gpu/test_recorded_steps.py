"""Whole search steps recorded once an epoch and replayed: the numbers of steps made one by one."""

import pytest
import torch

from pyfast_nas.algorithms import DARTS, StepGraph
from pyfast_nas.spaces import DARTS as DARTSSpace
from tests.gpu.devices import on_each_device

SPACE = DARTSSpace(channels=4, cells=3, image_size=8, num_classes=3, track_running_stats=True)


def prepared(device, epochs=3, steps_per_epoch=4):
    net = SPACE.supernet(torch.Generator().manual_seed(0)).to(device)
    algorithm = DARTS()
    algorithm.prepare(net, space=SPACE, epochs=epochs, steps_per_epoch=steps_per_epoch)
    return algorithm


def batches(device, count=12, size=4):
    draw = torch.Generator().manual_seed(2)

    def batch():
        images = torch.randn(size, 3, 8, 8, generator=draw)
        return images.to(device), torch.randint(3, (size,), generator=draw).to(device)

    return [(batch(), batch()) for _ in range(count)]


def states(algorithm):
    momenta = [entry["momentum_buffer"] for entry in algorithm.weight_optimizer.state.values()]
    return [*algorithm.supernet.state_dict().values(), *momenta]


@pytest.mark.promise("K19")
@on_each_device
def test_recorded_steps_search_like_plain_ones(device):
    plain, recorded = prepared(device), prepared(device)
    graph = StepGraph(recorded)
    for train, valid in batches(device):
        want, got = plain.step(train, valid), graph.step(train, valid)
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=1e-3, atol=1e-5)
    assert (graph.reason == "") == (device == "cuda"), graph.reason
    assert recorded.steps == recorded.alpha_steps == 12
    for got, want in zip(states(recorded), states(plain), strict=True):
        # cuDNN may take another convolution in a graph.
        scale = float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * scale)


@on_each_device
def test_a_step_asks_for_nothing(device, never_waits, monkeypatch):
    algorithm = prepared(device)
    (train, valid), *_ = batches(device)
    for _ in range(2):
        algorithm.step(train, valid)
    algorithm.start_step()
    if device == "cpu":  # where torch's Adam cannot be told to be capturable
        monkeypatch.setattr(algorithm.alpha_optimizer, "step", lambda: None)
    with never_waits():
        algorithm.run_step(train, valid)
