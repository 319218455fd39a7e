"""Measured latency: what is timed, how often, and that nothing else moves."""

import dataclasses
import random
import time

import pytest
import torch
from torch import nn
from torch.nn import functional

from pyfast_nas import _ext, spaces
from pyfast_nas.costs import measure_latency, measure_network
from pyfast_nas.costs.deployed import deployed
from pyfast_nas.errors import ConfigError, SearchSpaceError
from pyfast_nas.nn.chain import BlockSizes, MixedBlock
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.inheritance import inherit
from pyfast_nas.nn.mixed_op import MixedOp, mix_edges
from pyfast_nas.nn.primitives import Zero
from pyfast_nas.nn.supernet import Supernet
from pyfast_nas.spaces.choices import choices_of

SMALL = spaces.DARTS(channels=8, cells=3, nodes=2, image_size=16)
TRACKING = dataclasses.replace(SMALL, track_running_stats=True)
CHAIN = spaces.ProxylessNAS(
    widths=(16,), blocks=(3,), strides=(2,), width_factor=0.25, image_size=8, num_classes=3
)
SHAPE = (8, 3, 16, 16)
OWN_TIME = time.process_time  # what other processes take does not count


class Clock:
    """Stands still but for what modules say that they take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: dict[str, int] = {}

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo) -> "Clock":
        return self


class Takes(nn.Module):
    """The identity in some seconds: one number, or one for each call."""

    def __init__(self, clock: Clock, name: str, *seconds: float) -> None:
        super().__init__()
        self.clock, self.name, self.seconds = clock, name, seconds

    def forward(self, x):
        done = self.clock.calls.get(self.name, 0)
        self.clock.calls[self.name] = done + 1
        self.clock.now += self.seconds[min(done, len(self.seconds) - 1)]
        return x


class Timed(Supernet):
    """Three cells of two rows in one table; in front of two a layer of known time and a pooling."""

    def __init__(self, clock: Clock) -> None:
        super().__init__({"cell": [["none", "a", "b"], ["c"]]})
        self.fixed = Takes(clock, "fixed", 5.0)
        kinds = {"a": (clock, "a", 1.0), "b": (clock, "b", 2.0), "c": (clock, "c", 4.0)}

        def edge(names):
            return MixedOp({n: Takes(*kinds[n]) if n in kinds else Zero() for n in names})

        self.cells = nn.ModuleList(
            nn.ModuleList(edge(names) for names in self.candidates["cell"]) for _ in range(3)
        )

    def placed_edges(self):
        for cell in self.cells:
            yield from (("cell", row, edge) for row, edge in enumerate(cell))

    def mix(self, x, gates):
        for place, cell in enumerate(self.cells):
            if place < 2:  # the last two cells get images of one size
                x = functional.avg_pool2d(self.fixed(x), 2)
            x = mix_edges(list(cell), [x, x], gates["cell"])
        return x


def test_costs_are_sums_over_places_of_times_measured_once() -> None:
    clock = Clock()
    costs = measure_latency(Timed(clock), (2, 1, 8, 8), warmup=3, repeats=10, clock=clock)
    assert (costs.unit, costs.fixed) == ("ms", 10_000.0)
    assert costs.rows["cell"].tolist() == [[0.0, 3000.0, 6000.0], [12_000.0, 0.0, 0.0]]
    # Two shapes, thirteen calls each; one pass finds the shapes by running one of each row.
    assert clock.calls == {"b": 2 * 13, "a": 2 * 13 + 3, "c": 2 * 13 + 3, "fixed": 2 * (1 + 13)}


def test_the_median_leaves_out_calls_before_and_far_off() -> None:
    clock = Clock()
    net = Takes(clock, "net", 50.0, 60.0, 3.0, 900.0, 1.0)
    assert measure_network(net, (2, 2), warmup=2, repeats=3, clock=clock) == 3000.0
    assert clock.calls == {"net": 5}


def test_what_an_empty_call_takes_is_taken_off() -> None:
    clock = Clock()

    def ticking() -> float:
        clock.now += 0.25
        return clock.now

    costs = measure_latency(Timed(clock), (2, 1, 8, 8), repeats=1, clock=ticking)
    assert costs.rows["cell"][0].tolist() == [0.0, 3000.0, 6000.0]
    assert costs.fixed == 10_250.0


@pytest.mark.parametrize("space", [SMALL, spaces.NASBench201(channels=4, cells=1, image_size=16)])
def test_what_is_timed_computes_what_a_network_from_scratch_does(space) -> None:
    torch.manual_seed(0)
    net = deployed(space.supernet())
    for tensor in (*net.parameters(), *net.buffers()):
        if tensor.is_floating_point():
            tensor.uniform_(0.2, 0.6)
    for _ in range(4):
        genotype = space.random_genotype()
        network = space.build(genotype, channels=space.channels, cells=space.cells).eval()
        inherit(network, net)  # fails unless the layers are the same
        gates = {}
        for table, flags in choices_of(genotype, space.candidates).items():
            active = tuple((int(row.long().argmax()),) for row in flags)  # "none" without an edge
            gates[table] = GateOutput(torch.ones(len(active), 1), active, straight_through=True)
        x = torch.rand(SHAPE)
        with torch.no_grad():
            torch.testing.assert_close(net(x, gates), network(x), rtol=1e-5, atol=1e-5)


def test_what_is_timed_of_a_chain_computes_what_a_network_from_scratch_does() -> None:
    torch.manual_seed(0)
    net = deployed(CHAIN.supernet())
    for _ in range(4):
        genotype = CHAIN.random_genotype()
        network = CHAIN.build(genotype).eval()
        inherit(network, net)
        flags = choices_of(genotype, CHAIN.candidates)["blocks"]
        active = tuple((int(row.long().argmax()),) for row in flags)
        gates = {"blocks": GateOutput(torch.ones(len(active), 1), active, straight_through=True)}
        x = torch.rand(SHAPE)
        with torch.no_grad():
            torch.testing.assert_close(net(x, gates), network(x))


def test_a_block_that_is_left_out_costs_nothing() -> None:
    block = deployed(MixedBlock(["mbconv_3x3_e3", "zero"], BlockSizes(4, 4, 1), False))
    x = torch.ones(2, 4, 8, 8)
    assert block(x, GateOutput(torch.ones(1, 1), ((1,),)), 0) is x


@pytest.mark.parametrize("measure", [measure_latency, measure_network])
@pytest.mark.parametrize("space", [TRACKING, spaces.Toy()])
def test_measuring_leaves_no_trace(space, measure) -> None:
    net = space.supernet()
    next(net.children()).eval()  # modes that differ
    net.arch_parameters()[0].grad = torch.ones_like(net.arch_parameters()[0])
    next(iter(net.weight_parameters())).requires_grad_(False)
    shape = (4, 8) if isinstance(space, spaces.Toy) else SHAPE
    before = snapshot(net)
    measure(net, shape, warmup=1, repeats=2)
    assert snapshot(net) == before


def snapshot(net: Supernet) -> dict:
    return {
        "tensors": {n: t.tolist() for n, t in net.state_dict(keep_vars=True).items()},
        "gradients": {n: p.grad is None or p.grad.tolist() for n, p in net.named_parameters()},
        "asked for": {n: p.requires_grad for n, p in net.named_parameters()},
        "modes": {n: m.training for n, m in net.named_modules()},
        "keys": {n: sorted(m.__dict__) for n, m in net.named_modules()},
        "hooks": {
            n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in net.named_modules()
        },
        "random": (torch.get_rng_state().tolist(), random.getstate()),
        "process": (torch.get_num_threads(), torch.is_grad_enabled(), _ext.mode()),
    }


def test_two_measurements_agree() -> None:
    # Each takes about twice as long as the one before.
    names = ("skip_connect", "dil_conv_3x3", "sep_conv_3x3", "max_pool_3x3")
    space = dataclasses.replace(SMALL, operations=names, nodes=1)
    net = space.supernet()
    found = [measure_latency(net, SHAPE, clock=OWN_TIME) for _ in range(2)]
    values = torch.stack([torch.tensor([*c.rows["normal"][0], c.fixed]) for c in found])
    ranks = values.argsort(1).argsort(1).double()
    assert float(ranks.corrcoef()[0, 1]) > 0.9
    for costs in found:
        skip, _, conv, _ = costs.rows["normal"][0].tolist()
        assert 10 * skip < conv
        assert costs.rows["reduce"][0, 0] > 10 * skip  # it halves the image there


def test_table_is_near_the_time_of_a_derived_network() -> None:
    costs = measure_latency(SMALL.supernet(), SHAPE, clock=OWN_TIME)
    genotype = SMALL.random_genotype(torch.Generator().manual_seed(0))
    network = SMALL.build(genotype, channels=8, cells=3)
    whole = measure_network(network, SHAPE, clock=OWN_TIME)
    assert 0.5 < costs.of(genotype, SMALL.candidates) / whole < 2


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("warmup must be an integer from 0, got -1", {"warmup": -1}),
        ("repeats must be an integer from 1, got 0", {"repeats": 0}),
        ("repeats must be an integer from 1, got 2.5", {"repeats": 2.5}),
    ],
)
def test_impossible_options_are_refused(words, options) -> None:
    for measure in (measure_latency, measure_network):
        with pytest.raises(ConfigError, match=words):
            measure(spaces.Toy().supernet(), (2, 8), **options)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"input_shape must be positive integers, got \(0, 8\)"):
        measure_latency(spaces.Toy().supernet(), (0, 8))
    with pytest.raises(SearchSpaceError, match="placed_edges must name every mixed operation"):
        measure_latency(Supernet({"cell": [["none", "a"]]}), (2, 8))


def test_a_batch_that_a_network_does_not_take_is_named() -> None:
    supernet = spaces.NASBench201(cells=1, channels=2).supernet()
    for measure in (measure_latency, measure_network):
        words = rf"{measure.__name__}: input_shape must be .*\[2, 5, 8, 8\]"
        with pytest.raises(SearchSpaceError, match=words):
            measure(supernet, (2, 5, 8, 8), warmup=0, repeats=1)


def test_a_table_says_what_was_measured() -> None:
    space = spaces.NASBench201(cells=1, channels=2)
    table = measure_latency(space.supernet(), (2, 3, 8, 16), warmup=0, repeats=1)
    assert table.about == "batch of 2, cpu, 8x16x3"
    assert table.candidates == dict(space.candidates)
