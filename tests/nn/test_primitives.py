"""Every candidate operation: shapes, layers, and that none touches its input."""

import pytest
import torch
from torch import nn

from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.nn.primitives import (
    PRIMITIVES,
    FactorizedReduce,
    PoolBN,
    SkipConnect,
    Zero,
    check_operations,
)

CHANNELS = 6


def make(name, stride, affine=False, track=False):
    torch.manual_seed(0)
    return PRIMITIVES[name](CHANNELS, stride, affine, track)


# A factorised reduction refuses odd sides, which has its own test below.
SHAPES = [
    (name, size, stride)
    for name in PRIMITIVES
    for size in [(8, 8), (4, 6), (9, 7)]
    for stride in (1, 2)
    if (name, size, stride) != ("skip_connect", (9, 7), 2)
]


@pytest.mark.parametrize(("name", "size", "stride"), SHAPES)
def test_output_shape(name, size, stride):
    layer = make(name, stride)
    height, width = (-(-side // stride) for side in size)
    assert layer(torch.randn(2, CHANNELS, *size)).shape == (2, CHANNELS, height, width)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_input_is_left_alone(name, stride):
    x = torch.randn(2, CHANNELS, 8, 8)
    before, version = x.clone(), x._version
    make(name, stride)(x)
    assert x._version == version
    assert torch.equal(x, before)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("affine", [False, True])
def test_parameter_counts(stride, affine):
    """Depthwise k*k*C, pointwise C*C, and 2*C for each batch norm that learns."""
    c, norm = CHANNELS, 2 * CHANNELS if affine else 0
    want = {
        "none": 0,
        "noise": 0,
        "max_pool_3x3": 0,
        "avg_pool_3x3": 0,
        "skip_connect": 0 if stride == 1 else c * c + norm,
    }
    want |= {f"sep_conv_{k}x{k}": 2 * (k * k * c + c * c + norm) for k in (3, 5, 7)}
    want |= {f"dil_conv_{k}x{k}": k * k * c + c * c + norm for k in (3, 5)}
    got = {
        name: sum(p.numel() for p in make(name, stride, affine).parameters()) for name in PRIMITIVES
    }
    assert got == want


def test_zero_writes_zeros():
    x = torch.full((1, 2, 5, 4), float("nan"), dtype=torch.float16)
    y = Zero(2)(x)
    assert y.dtype == torch.float16 and y.shape == (1, 2, 3, 2)
    assert not y.any()
    channels_last = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert Zero(1)(channels_last).is_contiguous(memory_format=torch.channels_last)


def test_average_pool_leaves_the_padding_out():
    pool, norm = PoolBN("avg", CHANNELS)
    assert torch.equal(pool(torch.ones(1, CHANNELS, 4, 4)), torch.ones(1, CHANNELS, 4, 4))
    assert not norm.affine


def test_factorized_reduce_sees_both_diagonals():
    layer = FactorizedReduce(1, 2).eval()
    with torch.no_grad():
        layer.conv0.weight.fill_(1)
        layer.conv1.weight.fill_(10)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    even, odd = layer(x)[0] * (1 + layer.bn.eps) ** 0.5
    torch.testing.assert_close(even, x[0, 0, ::2, ::2])
    torch.testing.assert_close(odd, 10 * x[0, 0, 1::2, 1::2])


def test_factorized_reduce_refusals():
    with pytest.raises(SearchSpaceError, match="out_channels must be even, got 3"):
        FactorizedReduce(4, 3)
    with pytest.raises(SearchSpaceError, match="must be even, got 7 x 8"):
        FactorizedReduce(4, 4)(torch.ones(1, 4, 7, 8))


def test_relus_are_out_of_place():
    for name in PRIMITIVES:
        for stride in (1, 2):
            for module in make(name, stride).modules():
                assert not getattr(module, "inplace", False)


def test_skip_applies_drop_block_in_training_only():
    skip = SkipConnect()
    skip.drop_block = lambda x: 2 * x
    x = torch.ones(1, 1, 2, 2)
    assert torch.equal(skip(x), 2 * x)
    assert skip.eval()(x) is x


def test_running_statistics_are_an_option():
    for track in (False, True):
        norms = [
            m
            for m in make("sep_conv_3x3", 1, track=track).modules()
            if isinstance(m, nn.BatchNorm2d)
        ]
        assert [norm.track_running_stats for norm in norms] == [track, track]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["sep_conv_3x4"], r"'sep_conv_3x4'; nearest: sep_conv_3x3, \w+, \w+"),
        (["none", "skip_connect", "none"], "'none' twice"),
        ([], "must not be empty"),
        (["none"], "only 'none'"),
        ("skip_connect", "sequence of names"),
        (3, "sequence of names"),
        ([["skip_connect"]], "known operations"),
    ],
)
def test_bad_operation_lists(names, words):
    with pytest.raises(SearchSpaceError, match=words):
        check_operations("DARTS: operations", names)
