"""Whole search steps recorded once an epoch and replayed: the numbers of steps made one by one."""

import pytest
import torch

from pyfast_nas.algorithms import DARTS, GDAS, MSGDAS, SNAS, ProxylessNAS, StepGraph
from pyfast_nas.bench.profile import launches
from pyfast_nas.spaces import DARTS as DARTSSpace
from tests.gpu.devices import GPU, over_grid

SPACE = DARTSSpace(
    nodes=2, channels=4, cells=3, image_size=8, num_classes=3, track_running_stats=True
)
# Every cell, node and candidate of the supernet that is searched on CIFAR-10; fewer channels.
WHOLE = DARTSSpace(channels=4, cells=8, image_size=16, num_classes=3)
# Three epochs, of which the first moves no architecture and the third has guidance.
RESTING = {"alpha_warmup": 0.34, "kd_warmup": 0.67}
# The same of ProxylessNAS; after it every step moves the architecture, or every second one.
BINARY = {"alpha_warmup": 0.34, "alpha_rest": 0, "alpha_interval": 1}
SEARCHES = {
    "DARTS": DARTS,
    "MSG-DAS, K = 1": lambda: MSGDAS(paths=1, **RESTING),
    # Cells run whole, in more kinds of call than are kept put together.
    "MSG-DAS, K = 3, joint": lambda: MSGDAS(paths=3, mode="joint", drop_rate=0.0, **RESTING),
    "MSG-DAS, score": lambda: MSGDAS(relaxation="score", score_baseline=0.5, **RESTING),
    "MSG-DAS, K = 2": lambda: MSGDAS(paths=2, **RESTING),
    "GDAS": GDAS,
    "GDAS, variant A": lambda: GDAS(variant="A"),
    "SNAS": lambda: SNAS(resource_weight=1.5e-3, resource_cost="policy_gradient"),
    "ProxylessNAS": lambda: ProxylessNAS(**(BINARY | {"alpha_interval": 2})),
    "ProxylessNAS, all run": lambda: ProxylessNAS(gradient="full", **BINARY),
    "ProxylessNAS, pairs with costs": lambda: ProxylessNAS(
        gradient="two", cost="parameters", cost_form="add-linear", **BINARY
    ),
    "ProxylessNAS, rewards": lambda: ProxylessNAS(gradient="reinforce", samples=2, **BINARY),
}
on_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])


def prepared(device, search, space=SPACE, epochs=3, steps_per_epoch=5, dtype=torch.float32):
    net = space.supernet(torch.Generator().manual_seed(0)).to(device, dtype)
    algorithm = SEARCHES[search]()
    generator = torch.Generator().manual_seed(1)
    algorithm.prepare(
        net, space=space, epochs=epochs, steps_per_epoch=steps_per_epoch, generator=generator
    )
    return algorithm


def batches(device, count, size=4, side=8, dtype=torch.float32):
    draw = torch.Generator().manual_seed(2)

    def batch():
        images = torch.randn(size, 3, side, side, generator=draw)
        return images.to(device, dtype), torch.randint(3, (size,), generator=draw).to(device)

    return [(batch(), batch()) for _ in range(count)]


def compare(device, search, space, count, size, side, dtype, tolerance):
    plain, recorded = (prepared(device, search, space, dtype=dtype) for _ in range(2))
    graph = StepGraph(recorded)
    for train, valid in batches(device, count, size, side, dtype):
        want, got = plain.step(train, valid), graph.step(train, valid)
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=tolerance, atol=1e-2 * tolerance)
    assert (graph.reason == "") == (device == "cuda"), graph.reason
    assert recorded.steps == plain.steps == count and recorded.alpha_steps == plain.alpha_steps
    assert torch.equal(recorded.generator.get_state(), plain.generator.get_state())
    momenta = [dict(a.weight_optimizer.state) for a in (plain, recorded)]
    for one, other in zip(plain.weights, recorded.weights, strict=True):
        if one in momenta[0] or other in momenta[1]:
            want, got = (
                state.get(weight, {}).get("momentum_buffer", torch.zeros_like(weight))
                for state, weight in zip(momenta, (one, other), strict=True)
            )
            close(got, want, tolerance)
    theirs = plain.supernet.state_dict()
    for name, got in recorded.supernet.state_dict().items():
        close(got, theirs[name], tolerance)


def close(got, want, tolerance):
    # cuDNN may take another convolution in a graph.
    atol = tolerance * max(1e-3, float(want.abs().max()))
    torch.testing.assert_close(got, want, rtol=tolerance, atol=atol)


@pytest.mark.promise("K19")
@over_grid("search", tuple(SEARCHES), 2)
def test_recorded_steps_search_like_plain_ones(device, search):
    """In double precision: other roundings would make the sampler draw otherwise in the end."""
    compare(device, search, SPACE, 15, 4, 8, torch.float64, 1e-8)


@pytest.mark.promise("K19")
@pytest.mark.parametrize("search", ["DARTS", "MSG-DAS, K = 2"])
@on_gpu
def test_recorded_steps_on_the_whole_supernet(device, search):
    compare(device, search, WHOLE, 15, 8, 16, torch.float64, 1e-7)


@over_grid("search", tuple(SEARCHES), 2)
def test_a_step_asks_for_nothing(device, search, never_waits, monkeypatch):
    algorithm = prepared(device, search, steps_per_epoch=4)
    (train, valid), *_ = batches(device, 1)
    for _ in range(11):  # until a step does all that it ever does
        algorithm.start_step()
        algorithm.run_step(train, valid)
        algorithm.finish_step()
    algorithm.start_step()
    if device == "cpu":  # where torch's Adam cannot be told to be capturable
        monkeypatch.setattr(algorithm.alpha_optimizer, "step", lambda: None)
    with never_waits():
        algorithm.run_step(train, valid)


@pytest.mark.parametrize("search", ["DARTS", "MSG-DAS, K = 2"])
@on_gpu
def test_a_recorded_step_is_started_at_once(device, search):
    """One graph, the copies of two batches, the seed, the metrics: not a launch for each kernel."""
    algorithm = prepared(device, search, steps_per_epoch=10)
    graph = StepGraph(algorithm)
    (batch,) = batches(device, 1)
    for _ in range(25):
        graph.step(*batch)
    found = launches(lambda: graph.step(*batch), device)
    assert found["launches"] > 200 > 40 > found["host_launches"], found
