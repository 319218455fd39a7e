"""Chains of inverted bottlenecks: shapes, layers, what runs, and what single paths keep."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from pyfast_nas.nn import ChainSizes, ChainSupernet, GateOutput, MBConv
from pyfast_nas.nn.chain import BOTTLENECKS, BlockSizes, MixedBlock
from pyfast_nas.nn.chain_network import ChainNetwork
from pyfast_nas.nn.inheritance import inherit

NAMES = (*BOTTLENECKS, "zero")


def chain(track=False):
    """Two blocks with a shortcut between two without; the rows differ in length."""
    sizes = ChainSizes(
        in_channels=3,
        stem=8,
        stem_stride=1,
        first=4,
        widths=(6, 6, 6, 8),
        strides=(2, 1, 1, 1),
        head=16,
        num_classes=5,
        track_running_stats=track,
    )
    return sizes, {"blocks": [NAMES if block.has_shortcut else NAMES[:6] for block in sizes.blocks]}


@pytest.mark.parametrize("name", BOTTLENECKS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_shapes_and_parameters(name, stride, size):
    """Check S3, shapes and networks: every candidate at strides 1 and 2."""
    kernel, expansion = BOTTLENECKS[name]
    assert name == f"mbconv_{kernel}x{kernel}_e{expansion}"
    layer = BlockSizes(4, 10, stride).layer(name, True)
    x = torch.randn(2, 4, *size)
    assert layer(x).shape == (2, 10, *(-(-side // stride) for side in size))
    middle = 4 * expansion
    weights = 4 * middle + kernel**2 * middle + 10 * middle
    assert sum(p.numel() for p in layer.parameters()) == weights + 2 * (2 * middle + 10)


def test_layers():
    kinds = [type(layer) for layer in MBConv(4, 6, 5, 3, 2)]
    conv = [nn.Conv2d, nn.BatchNorm2d]
    assert kinds == [*conv, nn.ReLU6, *conv, nn.ReLU6, *conv]
    assert [type(layer) for layer in MBConv(4, 6, 3, 1)] == [*conv, nn.ReLU6, *conv]
    depthwise = MBConv(4, 6, 5, 3, 2)[3]
    assert (depthwise.groups, depthwise.stride, depthwise.padding) == (12, (2, 2), (2, 2))
    for track in (True, False):
        norms = [m for m in MBConv(4, 6, 5, 3, 2, track) if isinstance(m, nn.BatchNorm2d)]
        settings = {(m.eps, m.momentum, m.affine, m.track_running_stats) for m in norms}
        assert settings == {(1e-3, 0.1, True, track)} and len(norms) == 3


def test_the_input_is_left_as_it_is():
    x = -torch.ones(2, 4, 8, 8)
    before = x.clone()
    for block in (
        MBConv(4, 4, 3, 1),
        MBConv(4, 4, 3, 6),
        MixedBlock(NAMES, BlockSizes(4, 4, 1), False),
    ):
        gate = (GateOutput(torch.full((1, 7), 0.2)), 0) if isinstance(block, MixedBlock) else ()
        block(x, *gate)
        assert torch.equal(x, before)


def test_shortcuts_stand_where_shapes_are_one():
    sizes, _ = chain()
    assert [block.has_shortcut for block in sizes.blocks] == [False, True, True, False]
    assert not BlockSizes(6, 6, 2).has_shortcut
    # Beside a shortcut the block adds its bottleneck to its input.
    block = MixedBlock(NAMES, BlockSizes(4, 4, 1), False)
    x = torch.randn(2, 4, 8, 8)
    gate = GateOutput(torch.tensor([[2.0]]), ((3,),))
    torch.testing.assert_close(block(x, gate, 0), x + 2 * block.edge.candidate(3)(x))


def test_zero_leaves_the_shortcut_alone():
    """Even where the input is not finite: zeros are written."""
    block = MixedBlock(NAMES, BlockSizes(4, 4, 1), False)
    x = torch.randn(2, 4, 8, 8)
    weight = torch.tensor([[0.3]], requires_grad=True)
    y = block(x, GateOutput(weight, ((6,),), straight_through=True), 0)
    assert torch.equal(y, x)
    x[0, 0, 0, 0] = float("inf")
    assert torch.equal(block(x, GateOutput(weight, ((6,),)), 0), x)


@pytest.mark.parametrize("track", [False, True])
def test_one_hot_supernet_equals_the_derived_network(track):
    """Check S3, shapes and networks: agreement to 1e-6, trained and evaluated."""
    sizes, rows = chain(track)
    net = ChainSupernet(rows, sizes).double()
    for picks in ((0, 6, 3, 5), (4, 1, 6, 2), (5, 2, 0, 0)):
        one_hot = torch.zeros(4, 7, dtype=torch.float64)
        one_hot[range(4), picks] = 1
        names = [row[pick] for row, pick in zip(rows["blocks"], picks, strict=True)]
        derived = ChainNetwork(names, sizes)
        inherit(derived, net)
        assert derived.operations == tuple(names)
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        for training in (True, False):
            net.train(training), derived.train(training)
            got, want = net(x, {"blocks": GateOutput(one_hot)}), derived(x)
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(
                torch.autograd.grad(got.square().sum(), x),
                torch.autograd.grad(want.square().sum(), x),
            )


def test_inherited_weights_are_copies():
    sizes, rows = chain()
    net = ChainSupernet(rows, sizes)
    derived = ChainNetwork(["mbconv_3x3_e3", "zero", "mbconv_7x7_e6", "mbconv_5x5_e3"], sizes)
    inherit(derived, net)
    ours, theirs = (dict(m.named_parameters()) for m in (derived, net))
    shared = {p.data_ptr() for p in ours.values()} & {p.data_ptr() for p in theirs.values()}
    assert not shared and derived.blocks[1].op is None
    assert torch.equal(ours["blocks.2.op.0.weight"], net.blocks[2].edge.candidate(5)[0].weight)


def test_placed_edges_name_every_mixed_operation():
    sizes, rows = chain()
    net = ChainSupernet(rows, sizes)
    placed = list(net.placed_edges())
    assert [(table, row) for table, row, _ in placed] == [("blocks", row) for row in range(4)]
    assert [edge.names for _, _, edge in placed] == [tuple(row) for row in rows["blocks"]]
    assert net.alphas["blocks"].shape == (4, 7)
    missing = net.logits()["blocks"].isneginf()
    assert missing.tolist() == [[False] * 6 + [len(row) == 6] for row in rows["blocks"]]


def test_candidates_that_do_not_run_have_no_gradient():
    sizes, rows = chain()
    net = ChainSupernet(rows, sizes)
    active = ((1,), (6,), (0,), (5,))
    net(torch.randn(4, 3, 8, 8), {"blocks": GateOutput(torch.ones(4, 1), active)}).sum().backward()
    for _, row, edge in net.placed_edges():
        for index in range(edge.num_ops):
            ran = index in active[row]
            for parameter in edge.candidate(index).parameters():
                assert (parameter.grad is not None) == ran


def kept(run, module):
    """Bytes that the graph of a pass holds, parameters and buffers not among them."""
    own = {p.data_ptr() for p in module.state_dict(keep_vars=True).values()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(size for size, _ in seen.values())


def test_a_single_path_keeps_what_its_network_keeps():
    sizes, rows = chain()
    net = ChainSupernet(rows, sizes)
    x = torch.randn(16, 3, 16, 16)
    picks = (5, 3, 6, 1)
    gates = {
        "blocks": GateOutput(torch.ones(4, 1), tuple((k,) for k in picks), straight_through=True)
    }
    derived = ChainNetwork([row[k] for row, k in zip(rows["blocks"], picks, strict=True)], sizes)
    alone = kept(lambda: derived(x), derived)
    single = kept(lambda: net(x, gates), net)
    everything = kept(lambda: net(x), net)
    assert single <= 1.1 * alone < 0.4 * everything
