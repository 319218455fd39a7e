"""Measured latency: the device has finished when the clock is read, and nothing else has moved."""

import time

import pytest
import torch
from torch import nn

from pyfast_nas.costs import measure_latency, measure_network
from pyfast_nas.spaces import DARTS
from tests.gpu.devices import on_each_device

# Each takes several times as long as the one before, on a GPU as many kernels longer.
SPACE = DARTS(
    channels=8, cells=3, nodes=1, image_size=32,
    operations=("none", "skip_connect", "dil_conv_3x3", "sep_conv_3x3"),
)  # fmt: skip
SHAPE = (16, 3, 32, 32)


@pytest.fixture
def clock(device):
    """Give the default on a GPU; on the CPU what other processes take does not count."""
    return time.process_time if device == "cpu" else time.perf_counter


@on_each_device
def test_costs_of_candidates_are_repeatable_and_in_order(device, clock):
    net = SPACE.supernet(torch.Generator().manual_seed(0)).to(device)
    for _ in range(2):
        costs = measure_latency(net, SHAPE, clock=clock)
        none, skip, dilated, separable = costs.rows["normal"][0].tolist()
        assert none == 0 and 3 * skip < dilated < separable
        assert costs.rows["reduce"][0, 1] > 3 * skip  # it halves the image
        assert costs.unit == "ms" and costs.fixed > dilated


@on_each_device
def test_table_is_near_the_time_of_a_derived_network(device, clock):
    costs = measure_latency(SPACE.supernet().to(device), SHAPE, clock=clock)
    genotype = SPACE.random_genotype(torch.Generator().manual_seed(0))
    network = SPACE.build(genotype, channels=8, cells=3).to(device)
    whole = measure_network(network, SHAPE, clock=clock)
    assert 0.4 < costs.of(genotype, SPACE.candidates) / whole < 2.5


@on_each_device
def test_the_device_is_idle_whenever_the_clock_is_read(device):
    size = 4096 if device == "cuda" else 64  # milliseconds of arithmetic, microseconds of launching
    net = nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(4))).to(device)
    idle = []

    def watching():
        idle.append(device == "cpu" or torch.cuda.current_stream().query())
        return time.perf_counter()

    assert measure_network(net, (size, size), warmup=2, repeats=3, clock=watching) > 0
    assert idle == [True] * 6


@on_each_device
def test_measuring_leaves_no_trace(device):
    net = SPACE.supernet(torch.Generator().manual_seed(0)).to(device)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    streams = torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else None
    measure_latency(net, SHAPE, warmup=1, repeats=2)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert device == "cpu" or torch.equal(torch.cuda.get_rng_state(), streams[1])
