"""The ProxylessNAS space: golden sizes, multiply-adds, derivation, random chains, options."""

import collections
import json
import math

import pytest
import torch
from torch import nn

from pyfast_nas.errors import DivergenceError, GenotypeError, SearchSpaceError
from pyfast_nas.nn.chain import BOTTLENECKS
from pyfast_nas.spaces import (
    DARTS_V1,
    PROXYLESS_GPU,
    SPACES,
    UNAS_CHAIN,
    Genotype,
    GenotypeEdge,
    ProxylessNAS,
)
from pyfast_nas.spaces.choices import choices_of

IMAGENET = {"num_classes": 1000, "image_size": 224}
SMALL = ProxylessNAS(width_factor=0.25, blocks=(2, 2, 1, 1, 1, 1), image_size=16)
CONVS = tuple(BOTTLENECKS)


def count(tensors):
    return sum(tensor.numel() for tensor in tensors)


def test_search_network_golden_size():
    """Check S1, sizes: weights of the official supernet."""
    net = ProxylessNAS(**IMAGENET).supernet()
    assert count(net.weight_parameters()) == 16_034_168
    assert list(net.alphas["blocks"].shape) == [21, 7]


@pytest.mark.parametrize(
    ("genotype", "size"), [(PROXYLESS_GPU, 7_119_848), (UNAS_CHAIN, 5_965_528)], ids=["gpu", "unas"]
)
def test_published_networks_golden_size(genotype, size):
    net = ProxylessNAS(width="gpu", **IMAGENET).build(genotype)
    assert count(net.parameters()) == size
    assert ProxylessNAS(width="gpu").genotype_of(net) == genotype


def multiply_adds_by_hand(genotype, stem, first, widths, head, classes):
    """Convolutions of a chain at 224 pixels, from the widths of its stages alone."""
    side, total = 112, 9 * 3 * stem * 112**2
    total += 112**2 * (9 * stem + stem * first)
    before = first
    for index, edge in enumerate(genotype.cells["blocks"]):
        stage, place = divmod(index, 4)
        stride = (2, 2, 2, 1, 2, 1)[stage] if place == 0 else 1
        if edge.op != "zero":
            kernel, expansion = int(edge.op[7]), int(edge.op[-1])
            middle = before * expansion
            total += before * middle * side**2
            total += (middle * kernel**2 + middle * widths[stage]) * (side // stride) ** 2
        side, before = side // stride, widths[stage]
    assert side == 7
    return total + before * head * side**2 + head * classes


def multiply_adds_of(module, size):
    """The same from the layers that run: inputs and outputs of every convolution."""
    total = 0

    def watch(layer, inputs, output):
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += layer.weight.numel()
        else:
            stride = layer.stride[0]
            height, width = (side // stride for side in inputs[0].shape[-2:])
            assert output.shape[-2:] == (height, width)
            total += layer.weight.numel() * height * width

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(watch)
    module(torch.empty(2, 3, size, size, device="meta"))
    return total


@pytest.mark.parametrize("name", ["gpu", "unas", "smallest"])
def test_multiply_adds(name):
    genotype = {
        "gpu": PROXYLESS_GPU,
        "unas": UNAS_CHAIN,
        "smallest": ProxylessNAS().from_operations(
            ["zero" if row % 4 else "mbconv_3x3_e3" for row in range(21)]
        ),
    }[name]
    wide = name in ("gpu", "unas")
    widths = (32, 56, 112, 128, 256, 432) if wide else (24, 40, 80, 96, 192, 320)
    ends = (40, 24, widths, 1728, 1000) if wide else (32, 16, widths, 1280, 1000)
    with torch.device("meta"):
        net = ProxylessNAS(width="gpu" if wide else "mobile", **IMAGENET).build(genotype)
    total = multiply_adds_of(net, 224)
    assert total == multiply_adds_by_hand(genotype, *ends)


def test_rows():
    rows = ProxylessNAS().candidates["blocks"]
    with_zero = [row for row, names in enumerate(rows) if names == (*CONVS, "zero")]
    assert with_zero == [row for row in range(21) if row % 4]
    assert all(rows[row] == CONVS for row in range(0, 21, 4))
    assert CONVS[:3] == ("mbconv_3x3_e3", "mbconv_3x3_e6", "mbconv_5x5_e3")
    assert ProxylessNAS().size() == 7**15 * 6**6
    first = ProxylessNAS(operations=("zero", *CONVS)).candidates["blocks"]
    assert first[0] == CONVS and first[1][0] == "zero"


def test_ties_go_to_the_lowest_index():
    """Check S2, derivation."""
    genotype = ProxylessNAS().derive({"blocks": torch.zeros(21, 7)})
    assert {edge.op for edge in genotype.cells["blocks"]} == {"mbconv_3x3_e3"}
    assert genotype.outputs == {"blocks": (21,)}


def test_derivation_by_hand():
    logits = torch.zeros(21, 7)
    logits[:, 6] = 50.0  # `zero` dominates where there is one; elsewhere the column is nobody's
    logits[0, 5], logits[4, 2], logits[5, 3] = 1.0, -1.0, 51.0
    logits[8, 1] = logits[8, 4] = 2.0
    ops = [edge.op for edge in ProxylessNAS().derive({"blocks": logits}).cells["blocks"]]
    want = ["zero" if row % 4 else "mbconv_3x3_e3" for row in range(21)]
    want[0], want[5], want[8] = "mbconv_7x7_e6", "mbconv_5x5_e6", "mbconv_3x3_e6"
    assert ops == want


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_genotype_from_nan(bad):
    logits = torch.zeros(21, 7)
    logits[3, 2] = bad
    with pytest.raises(DivergenceError, match=r"\['blocks'\]\[3\] .* never taken from NaN"):
        ProxylessNAS().derive({"blocks": logits})


def test_random_genotypes_are_uniform():
    """Chi-square of one block with seven candidates and one with six, bound at p = 1e-6."""
    generator = torch.Generator().manual_seed(0)
    seen = [collections.Counter(), collections.Counter()]
    draws = 2100
    for _ in range(draws):
        edges = SMALL.random_genotype(generator).cells["blocks"]
        for counter, row in zip(seen, (1, 4), strict=True):
            counter[edges[row].op] += 1
    assert [len(counter) for counter in seen] == [7, 6]
    for counter, most in zip(seen, (38.3, 35.9), strict=True):  # 6 and 5 degrees of freedom
        want = draws / len(counter)
        assert sum((n - want) ** 2 / want for n in counter.values()) < most


def test_genotype_as_json():
    genotype = SMALL.random_genotype(torch.Generator().manual_seed(3))
    assert Genotype.from_json(genotype.to_json()) == genotype
    edges = genotype.cells["blocks"]
    assert [(e.source, e.target) for e in edges] == [(row, row + 1) for row in range(8)]
    flags = choices_of(genotype, SMALL.candidates)["blocks"]
    names = SMALL.candidates["blocks"]
    chosen = [row[k] for row, k in zip(names, flags.long().argmax(1).tolist(), strict=True)]
    assert chosen == [edge.op for edge in edges] and flags.sum() == 8


@pytest.mark.parametrize("size", [224, 64, 32, 28, 8, 1])
def test_small_images(size):
    """As many of the five halvings as leave four pixels, dropped from the front."""
    space = SMALL.with_data(1, 3, size)
    halvings = min(5, max(0, int(math.log2(size / 4))))
    sizes = space.sizes
    assert (sizes.stem_stride, *sizes.strides).count(2) == halvings
    x = torch.empty(2, 1, size, size, device="meta")
    genotype = space.random_genotype(torch.Generator().manual_seed(0))
    with torch.device("meta"):
        net = space.build(genotype)
    shapes = []
    net.head.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    assert net(x).shape == (2, 3)
    side = size
    for _ in range(halvings):
        side = -(-side // 2)
    assert shapes[0][-2:] == (side, side)
    # What is left is the last of stem and stages: 4, 2, 1, 0 and the stem at the very last.
    starts = [sum(space.blocks[:stage]) for stage in (0, 1, 2, 4)]
    kept = [row for row, stride in enumerate(sizes.strides) if stride == 2]
    assert kept == starts[len(starts) - min(halvings, 4) :]


def test_given_strides_are_kept():
    space = ProxylessNAS(image_size=8, stem_stride=2)
    assert space.sizes.stem_stride == 2 and 2 not in space.sizes.strides
    space = ProxylessNAS(image_size=8, strides=(1, 2, 1, 1, 2, 1))
    assert space.sizes.stem_stride == 1
    assert [row for row, s in enumerate(space.sizes.strides) if s == 2] == [4, 16]


def test_widths():
    sizes = ProxylessNAS(width_factor=0.35).sizes
    assert (sizes.stem, sizes.first, sizes.head) == (16, 8, 448)
    assert sizes.widths[::4] == (8, 16, 32, 32, 64, 112)
    exact = ProxylessNAS(width_factor=0.35, divisor=1).sizes
    assert exact.widths[::4] == (8, 14, 28, 34, 67, 112)
    chain = ProxylessNAS(widths=(8, 16), blocks=(2, 1), strides=(1, 2)).sizes
    assert (chain.widths, chain.strides) == ((8, 8, 16), (1, 1, 2))
    assert len({*ProxylessNAS(width="gpu").sizes.widths}) == 6


def test_supernet_follows_the_generator():
    state = torch.get_rng_state()
    first, second = (SMALL.supernet(torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_config_round_trip():
    space = ProxylessNAS(widths=(8, 16), blocks=(2, 1), strides=(1, 2), image_size=(8, 16))
    config = json.loads(json.dumps(space.to_config()))
    again = SPACES[config.pop("name")](**config)
    assert again == space and hash(again) == hash(space)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": "huge"}, "width must be 'mobile' or 'gpu', got 'huge'"),
        ({"width_factor": 0}, "width_factor must be a number above 0 and at most 100, got 0"),
        ({"width_factor": float("nan")}, "width_factor must be .* got nan"),
        ({"width_factor": 1e308}, "width_factor must be .* got 1e"),
        ({"divisor": 0}, "divisor must be an integer at least 1, got 0"),
        ({"blocks": (1, 2)}, r"blocks must be 6 integers from 1 to 100, .* got \(1, 2\)"),
        ({"blocks": (1, 1, 1, 1, 1, 10**9)}, "blocks must be 6 integers from 1 to 100"),
        ({"strides": (2, 2, 2, 1, 3, 1)}, "strides must be 6 integers from 1 to 2"),
        ({"strides": ()}, r"strides must be 6 integers .* got \(\)"),
        ({"widths": (8,), "blocks": (1,)}, "strides must be given for a chain of 1 stages"),
        ({"widths": (), "blocks": ()}, "widths must hold an integer for each of 1 to 32"),
        (
            {"widths": (8,) * 33, "blocks": (1,) * 33, "strides": (1,) * 33},
            "each of 1 to 32 stages",
        ),
        ({"widths": (8, 0), "blocks": (1, 1)}, "widths must be 2 integers from 1"),
        ({"stem_stride": 3}, "stem_stride must be 1 or 2, got 3"),
        ({"image_size": 0}, "image_size must be at least 1 pixel on both sides, got 0"),
        ({"image_size": (8, 8, 8)}, "image_size must be"),
        ({"operations": ("zero",)}, "more than 'zero', got only 'zero'"),
        ({"operations": ("mbconv_3x3_e4",)}, "'mbconv_3x3_e4'; nearest: mbconv_3x3_e"),
    ],
)
def test_option_refusals(options, words):
    with pytest.raises(SearchSpaceError, match=f"ProxylessNAS: .*{words}"):
        ProxylessNAS(**options)


@pytest.mark.parametrize(
    ("genotype", "words"),
    [
        (lambda ops: ops[:-1], "must be a chain of 21 edges from state 0"),
        (
            lambda ops: ["zero", *ops[1:]],
            r"cells.blocks\[0\].op must be one of mbconv_3x3_e3, .*'zero'",
        ),
        (lambda ops: [*ops[:5], "conv", *ops[6:]], r"cells.blocks\[5\].op must be .* got 'conv'"),
    ],
)
def test_genotypes_that_are_none(genotype, words):
    with pytest.raises(GenotypeError, match=words):
        ProxylessNAS().from_operations(genotype(["mbconv_3x3_e3"] * 21))


def test_genotypes_of_another_space_are_refused():
    with pytest.raises(GenotypeError, match=r"space must be 'proxylessnas' .* got 'darts'"):
        ProxylessNAS().build(DARTS_V1)
    edges = tuple(GenotypeEdge(row, row + 1, "mbconv_3x3_e3") for row in range(8))
    with pytest.raises(GenotypeError, match=r"outputs.blocks must be \[8\], got \[7\]"):
        SMALL.check(Genotype("proxylessnas", {"blocks": edges}, {"blocks": (7,)}))
