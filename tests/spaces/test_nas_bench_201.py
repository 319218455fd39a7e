"""The NAS-Bench-201 space: golden sizes, strings, derivation, and the one-hot supernet."""

import collections
import json

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas import algorithms
from pyfast_nas.errors import DivergenceError, GenotypeError, SearchSpaceError
from pyfast_nas.nn import GateOutput
from pyfast_nas.spaces import SPACES, Genotype, GenotypeEdge, NASBench201, Toy
from pyfast_nas.spaces.nas_bench_201 import NAS_BENCH_201_OPERATIONS as NAMES

EDGES = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
SMALL = NASBench201(channels=4, cells=1, image_size=8)
# With every candidate, a state that nothing reaches and one that nothing reads.
CELLS = {
    "all": "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
    "+|nor_conv_3x3~0|none~1|skip_connect~2|",
    "unread": "|nor_conv_3x3~0|+|avg_pool_3x3~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|",
    "unreached": "|none~0|+|none~0|nor_conv_3x3~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|",
    "nothing": "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
}


def cell_of(op):
    return NASBench201().from_string(f"|{op}~0|+|{op}~0|{op}~1|+|{op}~0|{op}~1|{op}~2|")


def count(tensors):
    return sum(tensor.numel() for tensor in tensors)


def test_search_network_golden_size():
    net = NASBench201(track_running_stats=True).supernet()
    assert count(net.weight_parameters()) == 1_692_826
    assert [tuple(alpha.shape) for alpha in net.arch_parameters()] == [(6, 5)]
    assert list(net.buffers()) and not list(NASBench201().supernet().buffers())


@pytest.mark.parametrize(
    ("op", "size"),
    [
        ("nor_conv_3x3", 1_531_546),
        ("nor_conv_1x1", 241_306),
        ("skip_connect", 73_306),
        ("avg_pool_3x3", 73_306),
        ("none", 73_306),
    ],
)
def test_derived_networks_golden_size(op, size):
    assert count(NASBench201().build(cell_of(op)).parameters()) == size


def test_candidates_and_edges_are_in_the_published_order():
    assert NAMES == ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    assert NASBench201().candidates == {"cell": (NAMES,) * 6}
    genotype = NASBench201().random_genotype()
    assert [(edge.source, edge.target) for edge in genotype.cells["cell"]] == EDGES
    assert genotype.outputs == {"cell": (3,)}
    assert SPACES["nas-bench-201"] is NASBench201


@pytest.mark.promise("R2")
def test_every_cell_to_text_and_back():
    space = NASBench201()
    texts = [space.to_string(genotype) for genotype in space.enumerate()]
    assert len(texts) == len(set(texts)) == space.size() == 15_625
    assert list(space.strings()) == texts
    for genotype, text in zip(space.enumerate(), texts, strict=True):
        assert space.from_string(text) == genotype
    for genotype in map(space.from_string, CELLS.values()):
        assert Genotype.from_json(genotype.to_json()) == genotype


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be written"),
        (None, "must be written .* got None"),
        ("|skip_connect~0|" * 40_000, "must be written"),
        (CELLS["all"] + " ", "must be written"),
        (CELLS["all"].replace("+", ""), "must be written"),
        (CELLS["all"].replace("skip_connect~1", "skip_connect~0"), "must be written"),
        (
            CELLS["all"].replace("none~1", "max_pool_3x3~1"),
            r"cells.cell\[4\].op must be one of none",
        ),
    ],
)
def test_texts_that_are_none(text, words):
    with pytest.raises(GenotypeError, match=words):
        NASBench201().from_string(text)


def logits(**rows):
    """A zero table but for the given rows: row number -> {operation: logit}."""
    table = torch.zeros(6, 5)
    for row, values in rows.items():
        for name, value in values.items():
            table[int(row[1:]), NAMES.index(name)] = value
    return {"cell": table}


@pytest.mark.promise("S11")
def test_ties_go_to_the_lowest_index():
    ops = [edge.op for edge in NASBench201().derive(logits()).cells["cell"]]
    assert ops == ["none"] * 6


def test_derivation_by_hand():
    derived = NASBench201().derive(
        logits(
            r0={"none": 2.0, "nor_conv_3x3": 1.9},
            r1={"avg_pool_3x3": 0.1},
            r2={"skip_connect": 1.0, "nor_conv_1x1": 1.0},
            r5={"nor_conv_3x3": 3.0},
        )
    )
    want = "|none~0|+|avg_pool_3x3~0|skip_connect~1|+|none~0|none~1|nor_conv_3x3~2|"
    assert NASBench201().to_string(derived) == want


@pytest.mark.promise("S9")
def test_no_genotype_from_nan():
    with pytest.raises(DivergenceError, match=r"\['cell'\]\[5\] .* never taken from NaN"):
        NASBench201().derive(logits(r5={"none": float("nan")}))


def one_hot(genotype):
    table = torch.zeros(6, 5, dtype=torch.float64)
    for row, edge in enumerate(genotype.cells["cell"]):
        table[row, NAMES.index(edge.op)] = 1.0
    return {"cell": GateOutput(table)}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("track", [False, True])
def test_one_hot_supernet_equals_the_derived_network(name, track):
    """Trained and evaluated, gradients of the input included, with weights set by each other."""
    space = NASBench201(channels=4, cells=2, image_size=8, track_running_stats=track)
    genotype = space.from_string(CELLS[name])
    net = space.supernet(torch.Generator().manual_seed(0)).double()
    derived = space.inherit(genotype, net)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        net.train(training)
        derived.train(training)
        got, want = net(x, one_hot(genotype)), derived(x)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        gradients = [
            torch.autograd.grad(y.sum(), x, allow_unused=True, materialize_grads=True)[0]
            for y in (got, want)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in derived.parameters()}
    assert not shared and space.genotype_of(derived) == genotype


def test_the_plain_network_of_a_genotype_by_hand():
    """The cell, written out with the network's own layers."""
    genotype = NASBench201().from_string(CELLS["all"])
    net = SMALL.build(genotype, channels=4, cells=1)
    pool, one, _, three, _ = net.layers[0].ops
    x = torch.randn(2, 4, 8, 8)
    node1 = pool(x)
    node2 = one(x) + node1
    torch.testing.assert_close(net.layers[0](x), three(x) + node2)


def test_random_genotypes_are_uniform():
    """Chi-square of the operations of the third edge, bound at p = 1e-6."""
    generator = torch.Generator().manual_seed(0)
    space, draws = NASBench201(), 1500
    counts = collections.Counter(
        space.random_genotype(generator).cells["cell"][2].op for _ in range(draws)
    )
    assert len(counts) == 5
    assert sum((n - draws / 5) ** 2 / (draws / 5) for n in counts.values()) < 33.4  # 4 d.o.f.


def test_supernet_follows_the_generator():
    state = torch.get_rng_state()
    first, second = (SMALL.supernet(torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_small_grey_images():
    space = SMALL.with_data(1, 7, (8, 12))
    x = torch.randn(3, 1, 8, 12)
    assert space.supernet()(x).shape == (3, 7)
    assert space.build(space.random_genotype(), channels=2, cells=1)(x).shape == (3, 7)


def test_config_round_trip():
    space = NASBench201(image_size=(8, 16), cells=2)
    config = json.loads(json.dumps(space.to_config()))
    assert config.pop("name") == "nas-bench-201"
    assert NASBench201(**config) == space and hash(NASBench201(**config)) == hash(space)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cells": 0}, "cells must be an integer at least 1, got 0"),
        ({"channels": -16}, "channels must be .* got -16"),
        ({"channels": 4.0}, "channels must be .* got 4.0"),
        ({"num_classes": True}, "num_classes must be .* got True"),
        ({"in_channels": "3"}, "in_channels must be .* got '3'"),
        ({"image_size": 30}, "multiple of 4 .* halved 2 times, got 30"),
    ],
)
def test_option_refusals(options, words):
    with pytest.raises(SearchSpaceError, match=words):
        NASBench201(**options)


def changed(index=0, **values):
    edges = list(cell_of("none").cells["cell"])
    edges[index] = GenotypeEdge(**(vars(edges[index]) | values))
    return Genotype("nas-bench-201", {"cell": tuple(edges)}, {"cell": (3,)})


@pytest.mark.parametrize(
    ("genotype", "words"),
    [
        (lambda: changed(2, op="sep_conv_3x3"), r"cells.cell\[2\].op must be one of none, skip"),
        (lambda: changed(5, target=4), r"must be the edges \[\(0, 1\), \(0, 2\)"),
        (
            lambda: Genotype("nas-bench-201", changed().cells, {"cell": (2, 3)}),
            r"outputs.cell must be \[3\], got \[2, 3\]",
        ),
        (
            lambda: Genotype(
                "nas-bench-201", {"normal": changed().cells["cell"]}, {"normal": (3,)}
            ),
            r"cells \['cell'\], got 'nas-bench-201' with \['normal'\]",
        ),
        (lambda: Toy().optimum(), "space must be 'nas-bench-201'"),
    ],
)
def test_genotypes_of_another_space_are_refused(genotype, words):
    with pytest.raises(GenotypeError, match=words):
        NASBench201().build(genotype(), channels=2, cells=1)


@pytest.mark.parametrize(
    "algorithm",
    [
        algorithms.DARTS(),
        algorithms.GDAS(),
        algorithms.GDAS(variant="A"),
        algorithms.MSGDAS(paths=2),
        algorithms.MSGDAS(paths=5, alpha_warmup=0.0, kd_warmup=0.0, mode="joint"),
        algorithms.MSGDAS(paths=2, alpha_warmup=0.0, relaxation="score", assignment="shuffle"),
        algorithms.ProxylessNAS(alpha_interval=1),
        algorithms.ProxylessNAS(gradient="full", alpha_interval=1),
        algorithms.ProxylessNAS(gradient="two", alpha_interval=1),
        algorithms.RandomSearch(samples=4, finalists=2),
    ],
    ids=lambda algorithm: f"{algorithm.name} {getattr(algorithm, 'gradient', '')}",
)
def test_every_algorithm_searches_it(algorithm):
    """A few steps through the warm-ups: losses are finite and what ought to move moves."""
    generator = torch.Generator().manual_seed(0)
    net = SMALL.supernet(generator)
    algorithm.prepare(
        net, space=SMALL, epochs=4, steps_per_epoch=1, generator=generator, loss=F.cross_entropy
    )
    before = net.alphas["cell"].detach().clone()
    weight = net.stem[0].weight.detach().clone()
    for _ in range(4):
        batches = [
            (torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 10) for _ in range(2)
        ]
        metrics = algorithm.step(*batches)
        assert torch.isfinite(torch.as_tensor(metrics["train/loss"]))
    moved = not torch.equal(net.alphas["cell"], before)
    assert moved == (algorithm.name != "random")
    assert not torch.equal(net.stem[0].weight, weight)
    SMALL.check(algorithm.derive())
