"""The DARTS space: golden sizes, derivation, random cells, and the one-hot supernet."""

import collections
import json

import pytest
import torch

from pyfast_nas.errors import DivergenceError, GenotypeError, SearchSpaceError
from pyfast_nas.nn import CellSupernet
from pyfast_nas.nn.cell import edge_list
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.spaces import DARTS, DARTS_V1, DARTS_V2, Genotype, GenotypeEdge, Toy
from pyfast_nas.spaces.darts import DARTS_OPERATIONS

IMAGENET = {"stem": "imagenet", "image_size": 224, "num_classes": 1000}


def count(tensors):
    return sum(tensor.numel() for tensor in tensors)


def test_search_network_golden_size():
    net = DARTS(track_running_stats=True).supernet()
    assert count(net.weight_parameters()) == 1_930_618
    assert count(net.buffers()) == 75_521
    assert count(net.arch_parameters()) == 2 * 14 * 8
    assert not list(DARTS().supernet().buffers())


@pytest.mark.parametrize(
    ("operations", "size"),
    [
        (("skip_connect", "sep_conv_3x3"), 665_466),
        (("none", "skip_connect", "sep_conv_3x3"), 665_466),
    ],
)
def test_restricted_spaces_golden_size(operations, size):
    """Spaces S2 and S3 of Zela et al., "Understanding and Robustifying DARTS", ICLR 2020."""
    assert count(DARTS(operations=operations).supernet().weight_parameters()) == size


@pytest.mark.parametrize(
    ("genotype", "cifar", "imagenet"),
    [(DARTS_V1, 3_169_414, 4_510_432), (DARTS_V2, 3_349_342, 4_718_752)],
    ids=["V1", "V2"],
)
def test_evaluation_networks_golden_size(genotype, cifar, imagenet):
    assert count(DARTS().build(genotype, channels=36, cells=20).parameters()) == cifar
    net = DARTS(**IMAGENET).build(genotype, channels=48, cells=14)
    assert count(net.parameters()) == imagenet


def test_published_genotypes():
    pairs = {
        table: [(edge.op, edge.source) for edge in DARTS_V2.cells[table]]
        for table in ("normal", "reduce")
    }
    sep, skip, top = "sep_conv_3x3", "skip_connect", "max_pool_3x3"
    assert pairs["normal"] == [(sep, 0), (sep, 1)] * 2 + [
        (sep, 1),
        (skip, 0),
        (skip, 0),
        ("dil_conv_3x3", 2),
    ]
    assert pairs["reduce"][:4] == [(top, 0), (top, 1), (skip, 2), (top, 1)]
    assert DARTS_V1.cells["reduce"][-1] == GenotypeEdge(0, 5, "avg_pool_3x3")
    assert DARTS_V1.outputs == {"normal": (2, 3, 4, 5), "reduce": (2, 3, 4, 5)}


def test_size():
    assert DARTS().size() == 1_037_664_180**2
    assert DARTS(nodes=1, operations=("none", "skip_connect", "sep_conv_3x3")).size() == 16


def logits(**rows):
    """Zero tables but for the given rows of the normal cell: row number -> {operation: logit}."""
    tables = {table: torch.zeros(14, 8) for table in ("normal", "reduce")}
    for row, values in rows.items():
        for name, value in values.items():
            tables["normal"][int(row[1:]), DARTS_OPERATIONS.index(name)] = value
    return tables


def pairs(genotype, table="normal", node=None):
    edges = genotype.cells[table]
    return [(edge.op, edge.source) for edge in edges if node in (None, edge.target)]


@pytest.mark.promise("S11")
def test_ties_go_to_the_lowest_index():
    genotype = DARTS().derive(logits())
    want = [("max_pool_3x3", 0), ("max_pool_3x3", 1)] * 4
    assert pairs(genotype) == pairs(genotype, "reduce") == want


def test_derivation_by_hand():
    genotype = DARTS().derive(
        logits(
            # Node 3 is rows 2, 3, 4 from states 0, 1, 2.
            r2={"sep_conv_3x3": 1.0},
            r3={"none": 9.0, "dil_conv_5x5": 2.0},  # `none` takes nearly all of the row
            r4={"skip_connect": 2.0},
            # Node 2: the higher logit loses on an edge whose softmax is shared by another.
            r0={"sep_conv_5x5": 3.0, "dil_conv_3x3": 3.0},
            r1={"avg_pool_3x3": 2.9},
        )
    )
    assert pairs(genotype, node=3) == [("skip_connect", 2), ("sep_conv_3x3", 0)]
    assert pairs(genotype, node=2) == [("avg_pool_3x3", 1), ("sep_conv_5x5", 0)]
    assert pairs(genotype, node=4) == [("max_pool_3x3", 0), ("max_pool_3x3", 1)]


def test_none_is_never_chosen():
    tables = {table: torch.zeros(14, 8) for table in ("normal", "reduce")}
    for alphas in tables.values():
        alphas[:, 0] = 50.0
    assert all(op != "none" for op, _ in pairs(DARTS().derive(tables)))


def test_a_constant_on_one_edge_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    tables = {
        table: torch.randn(14, 8, generator=generator, dtype=torch.float64)
        for table in ("normal", "reduce")
    }
    shifted = {table: alphas + torch.arange(14.0)[:, None] for table, alphas in tables.items()}
    assert DARTS().derive(shifted) == DARTS().derive(tables)


def one_hot(genotype, space, value=1.0):
    """Gates or logits that pick the kept operation, and `none` where no edge is kept."""
    tables = {}
    for table, edges in genotype.cells.items():
        rows = torch.zeros(len(edge_list(space.nodes)), len(space.operations))
        rows[:, space.operations.index("none")] = value
        for edge in edges:
            row = edge_list(space.nodes).index((edge.source, edge.target))
            rows[row] = 0
            rows[row, space.operations.index(edge.op)] = value
        tables[table] = rows
    return tables


@pytest.mark.promise("R2")
def test_genotype_to_one_hot_logits_and_back():
    generator = torch.Generator().manual_seed(0)
    space = DARTS()
    for _ in range(10):
        genotype = space.random_genotype(generator)
        # Strengths fall along a node, so that the order of a node's pairs comes back as well.
        tables = one_hot(genotype, space, value=20.0)
        for table, edges in genotype.cells.items():
            for first, second in zip(edges[::2], edges[1::2], strict=True):
                row = edge_list(4).index((second.source, second.target))
                tables[table][row] *= 0.5
                assert first.target == second.target
        assert space.derive(tables) == genotype


@pytest.mark.parametrize("genotype", [DARTS_V1, DARTS_V2], ids=["V1", "V2"])
@pytest.mark.parametrize("track", [False, True])
def test_one_hot_supernet_equals_the_derived_network(genotype, track):
    """Agreement to 1e-6 of the logits, trained and evaluated, gradients of the input included."""
    space = DARTS(channels=4, cells=4, image_size=16, track_running_stats=track)
    net = space.supernet(torch.Generator().manual_seed(0)).double()
    gates = {t: GateOutput(rows.double()) for t, rows in one_hot(genotype, space).items()}
    derived = space.inherit(genotype, net)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        net.train(training)
        derived.train(training)
        got, want = net(x, gates), derived(x)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x)
        )


def test_inherited_weights_are_copies():
    space = DARTS(channels=2, cells=3)
    net = space.supernet()
    derived = space.inherit(DARTS_V1, net)
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in derived.parameters()}
    assert not shared
    assert space.genotype_of(derived) == DARTS_V1


@pytest.mark.promise("S9")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_genotype_from_nan(bad):
    tables = logits(r5={"sep_conv_3x3": bad})
    with pytest.raises(DivergenceError, match=r"\['normal'\]\[5\] .* never taken from NaN"):
        DARTS().derive(tables)


def test_derive_wants_its_tables():
    with pytest.raises(ValueError, match="must hold the table 'reduce'"):
        DARTS().derive({"normal": torch.zeros(14, 8)})
    with pytest.raises(ValueError, match=r"\['normal'\] must have shape \[14, 8\], got \[14, 7\]"):
        DARTS().derive({"normal": torch.zeros(14, 7), "reduce": torch.zeros(14, 8)})


def test_random_genotypes_are_uniform():
    """Chi-square of sources and operations of the last node, bound at p = 1e-6."""
    space = DARTS(operations=("none", "skip_connect", "sep_conv_3x3"))
    generator = torch.Generator().manual_seed(0)
    sources, operations = collections.Counter(), collections.Counter()
    draws = 1500
    for _ in range(draws):
        edges = space.random_genotype(generator).cells["reduce"][-2:]
        sources[tuple(edge.source for edge in edges)] += 1
        operations[tuple(edge.op for edge in edges)] += 1
    assert len(sources) == 10 and len(operations) == 4
    assert sum((n - draws / 10) ** 2 / (draws / 10) for n in sources.values()) < 45.1  # 9 d.o.f.
    assert sum((n - draws / 4) ** 2 / (draws / 4) for n in operations.values()) < 30.7  # 3 d.o.f.


def test_random_genotype_follows_the_generator():
    space = DARTS()
    first, second = (space.random_genotype(torch.Generator().manual_seed(4)) for _ in range(2))
    assert first == second != space.random_genotype(torch.Generator().manual_seed(5))


def test_supernet_follows_the_generator():
    space = DARTS(channels=2, cells=2)
    state = torch.get_rng_state()
    first, second = (space.supernet(torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert isinstance(space.supernet(), CellSupernet)
    assert not torch.equal(torch.get_rng_state(), state)


def test_small_grey_images():
    space = DARTS(channels=4, cells=4).with_data(1, 10, 8)
    assert (space.in_channels, space.num_classes, space.image_size) == (1, 10, 8)
    x = torch.randn(3, 1, 8, 8)
    assert space.supernet()(x).shape == (3, 10)
    assert space.build(space.random_genotype(), channels=4, cells=5)(x).shape == (3, 10)


def test_config_round_trip():
    space = DARTS(image_size=(8, 16), operations=("none", "skip_connect", "sep_conv_7x7"))
    config = json.loads(json.dumps(space.to_config()))
    assert config.pop("name") == "darts"
    again = DARTS(**config)
    assert again == space and hash(again) == hash(space)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["skip_connect"], r"pairs\[0\] must be \(operation, source\), got 'skip_connect'"),
        ([("skip_connect", 0)], "2 edges into node 2, got 1"),
        ([("skip_connect", 0), ("skip_connect", 0)], "must not repeat an edge"),
        ([(0, "skip_connect"), ("skip_connect", 1)], "must be an integer, got str"),
    ],
)
def test_pairs_that_are_none(pairs, words):
    with pytest.raises(GenotypeError, match=words):
        DARTS(nodes=1).from_pairs(normal=pairs, reduce=pairs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": 0}, "nodes must be an integer at least 1, got 0"),
        ({"nodes": -3}, "nodes must be an integer at least 1, got -3"),
        ({"nodes": 2.0}, "nodes must be an integer at least 1, got 2.0"),
        ({"nodes": True}, "nodes must be an integer at least 1, got True"),
        ({"multiplier": 5}, "multiplier must be an integer from 1 to nodes=4, got 5"),
        ({"cells": 0}, "cells must be .* got 0"),
        ({"channels": 0}, "channels must be .* got 0"),
        ({"channels": -16}, "channels must be .* got -16"),
        ({"num_classes": 0}, "num_classes must be .* got 0"),
        ({"in_channels": "3"}, "in_channels must be .* got '3'"),
        ({"stem": "mnist"}, "stem must be 'cifar' or 'imagenet', got 'mnist'"),
        ({**IMAGENET, "channels": 7}, "channels must be even with the imagenet stem, got 7"),
        ({"image_size": 30}, "multiple of 4 .* halved 2 times, got 30"),
        ({"image_size": (32, 31)}, r"multiple of 4 .* got \(32, 31\)"),
        ({"image_size": (32, 32, 32)}, "multiple of 4"),
        ({"image_size": None}, "multiple of 4 .* got None"),
        ({"image_size": 48, "stem": "imagenet"}, "multiple of 32 .* halved 5 times, got 48"),
        ({"operations": ("sep_conv_3x4", "none")}, "'sep_conv_3x4'; nearest: sep_conv_3x3"),
        ({"operations": ("none",)}, "only 'none'"),
        ({"operations": ()}, "must not be empty"),
        ({"operations": ("skip_connect",) * 2}, "'skip_connect' twice"),
    ],
)
def test_option_refusals(options, words):
    with pytest.raises(SearchSpaceError, match=words):
        DARTS(**options)


def changed(table="normal", index=0, **values):
    cells = dict(DARTS_V1.cells)
    edges = list(cells[table])
    edges[index] = GenotypeEdge(**(vars(edges[index]) | values))
    cells[table] = tuple(edges)
    return Genotype("darts", cells, DARTS_V1.outputs)


@pytest.mark.parametrize(
    ("genotype", "words"),
    [
        (lambda: changed(op="none"), r"cells.normal\[0\].op .* got 'none'"),
        (lambda: changed(index=3, op="conv"), r"cells.normal\[3\].op must be one of max_pool_3x3"),
        (lambda: changed(index=7, target=6), r"cells.normal\[7\].target .* 2 to 5, got 6"),
        (lambda: changed(index=2, target=2, source=0), "must not repeat an edge"),
        (lambda: changed(index=6, target=4, source=3), "2 edges into node 4, got 3"),
        (
            lambda: Genotype("darts", DARTS_V1.cells, dict.fromkeys(DARTS_V1.cells, (2, 3, 4))),
            r"outputs.normal must be \[2, 3, 4, 5\], got \[2, 3, 4\]",
        ),
        (
            lambda: Genotype("darts", {"normal": DARTS_V1.cells["normal"]}, {"normal": (5,)}),
            r"cells must be \['normal', 'reduce'\], got \['normal'\]",
        ),
        (lambda: Toy().optimum(), "space must be 'darts', got 'toy'"),
    ],
)
def test_genotypes_of_another_space_are_refused(genotype, words):
    with pytest.raises(GenotypeError, match=words):
        DARTS().build(genotype(), channels=2, cells=2)
