"""Supernets: parameters and their two owners, gates, ragged rows, running statistics."""

import copy

import pytest
import torch
from torch import nn

from pyfast_nas.nn import CellSupernet, GumbelTopK, Softmax, Supernet, frozen_statistics
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.stem import Stem, reduction_cells

NAMES = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
SEED = torch.tensor([5, 0])


def supernet(nodes=2, **options):
    torch.manual_seed(0)
    rows = [NAMES] * (nodes * (nodes + 3) // 2)
    options = {"channels": 4, "cells": 3, "num_classes": 5, "in_channels": 1} | options
    return CellSupernet({"normal": rows, "reduce": rows}, **options)


def images(side=8, channels=1):
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(1))


def test_alphas_are_small_parameters_of_the_module():
    net = supernet(nodes=4)
    assert set(net.alphas) == {"normal", "reduce"}
    assert net.alphas["normal"].shape == (14, 4)
    values = torch.cat([alpha.detach().flatten() for alpha in net.arch_parameters()])
    assert 5e-4 < values.std() < 2e-3
    assert {"alphas.normal", "alphas.reduce"} <= set(net.state_dict())


@pytest.mark.promise("S3")
def test_every_parameter_has_one_owner():
    net = supernet()
    arch, weights = set(net.arch_parameters()), set(net.weight_parameters())
    assert not arch & weights
    assert arch | weights == set(net.parameters())
    assert len(net.weight_parameters()) == len(weights)


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 8])
def test_depth_plan(cells):
    net = supernet(cells=cells)
    assert [i for i, t in enumerate(net.tables) if t == "reduce"] == list(reduction_cells(cells))
    assert net(images()).shape == (3, 5)


def test_cell_outputs_along_the_depth():
    net = supernet(nodes=4, channels=2, cells=4)
    shapes = []
    for cell in net.cells:
        cell.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[1:]))
    net(images())
    assert [tuple(shape) for shape in shapes] == [(8, 8, 8), (16, 4, 4), (32, 2, 2), (32, 2, 2)]


def test_own_softmax_is_the_default_gate():
    net = supernet()
    x = images()
    gate = Softmax()
    gates = {table: gate(alpha) for table, alpha in net.alphas.items()}
    assert torch.equal(net(x), net(x, gates))


def test_gradients_reach_what_ran():
    net = supernet()
    net(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_tables_are_shared_by_their_cells():
    """Scaling one candidate in one table must change every cell of that table and no other."""
    net = supernet(cells=4)
    x = images()
    outputs = {}

    def record(index):
        return lambda module, inputs, output: outputs.setdefault(index, []).append(output)

    for index, cell in enumerate(net.cells):
        cell.register_forward_hook(record(index))
    gates = {table: Softmax()(alpha) for table, alpha in net.alphas.items()}
    net(x, gates)
    gates["reduce"] = GateOutput(gates["reduce"].weights.flip(1))
    net(x, gates)
    assert net.tables == ["normal", "reduce", "reduce", "normal"]
    assert torch.equal(*outputs[0])
    assert not torch.equal(*outputs[1])


def test_state_dict_carries_the_search():
    net, other = supernet(), supernet(nodes=2)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images()), net(images()))
    twin = copy.deepcopy(net)
    assert torch.equal(twin(images()), net(images()))
    assert not set(twin.arch_parameters()) & set(net.arch_parameters())


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ({}, "5 rows for table 'normal', got none"),
        ({"normal": GateOutput(torch.ones(4, 4))}, r"5 rows for table 'normal', got \[4, 4\]"),
        ({"normal": GateOutput(torch.ones(5, 4))}, "5 rows for table 'reduce'"),
    ],
)
def test_wrong_gates_are_refused(gates, words):
    with pytest.raises(ValueError, match=words):
        supernet()(images(), gates)


def test_imagenet_stem():
    s0, s1 = Stem("imagenet", 3, 8)(torch.randn(2, 3, 64, 64))
    assert s0.shape == (2, 8, 16, 16) and s1.shape == (2, 8, 8, 8)
    s0, s1 = Stem("cifar", 3, 8)(torch.randn(2, 3, 32, 32))
    assert s0 is s1 and s0.shape == (2, 8, 32, 32)
    net = supernet(stem="imagenet", in_channels=3)
    assert net(images(64, 3)).shape == (3, 5)


class Ragged(Supernet):
    """Two rows of two and three candidates; the output is the expected candidate number."""

    def __init__(self):
        super().__init__({"cell": [["a", "b"], ["a", "b", "c"]]})

    def mix(self, x, gates):
        return x * (gates["cell"].weights * torch.arange(3.0)).sum()


def test_ragged_rows_are_masked_and_never_trained():
    net = Ragged()
    logits = net.logits()["cell"]
    assert logits[0, 2] == -torch.inf and torch.isfinite(logits[1]).all()
    assert GumbelTopK(2)(logits, SEED).active[0] in ((0, 1), (1, 0))
    optimizer = torch.optim.Adam(net.arch_parameters(), lr=0.1, weight_decay=0.1)
    before = net.alphas["cell"].detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.ones(())).backward()
        optimizer.step()
    assert net.alphas["cell"][0, 2] == 0
    assert (net.alphas["cell"] != before).sum() == 5
    assert torch.isfinite(net.alphas["cell"]).all()
    assert not list(net.state_dict().keys() - {"alphas.cell"})


def buffers(net):
    return {name: value.clone() for name, value in net.named_buffers()}


@pytest.mark.promise("S4")
def test_statistics_count_weight_steps_only():
    net = supernet(track_running_stats=True)
    x = images()
    for _ in range(3):
        net(x)  # a weight step's forward
        before = buffers(net)
        with frozen_statistics(net):
            net(x * 3)  # validation, teacher or perturbed pass
        assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    counters = [v for k, v in net.named_buffers() if k.endswith("num_batches_tracked")]
    ran = [int(counter) for counter in counters]
    assert ran and set(ran) == {3}


@pytest.mark.parametrize("training", [True, False])
def test_frozen_statistics_use_the_batch_and_restore(training):
    net = supernet(track_running_stats=True)
    x = images()
    want = net(x)
    net.train(training)
    flags = [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]
    with frozen_statistics(net):
        torch.testing.assert_close(net(x), want, rtol=0, atol=0)
    assert flags == [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]
    with pytest.raises(KeyboardInterrupt), frozen_statistics(net):
        raise KeyboardInterrupt
    assert flags == [(m.training, getattr(m, "track_running_stats", None)) for m in net.modules()]


def test_frozen_statistics_nest_and_know_instance_norm():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.InstanceNorm2d(2, track_running_stats=True))
    before = buffers(model)
    with frozen_statistics(model):
        with frozen_statistics(model):
            model(torch.randn(3, 2, 4, 4))
        model(torch.randn(3, 2, 4, 4))
        model.eval()(torch.randn(3, 2, 4, 4))
    model.train()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(layer.track_running_stats for layer in model)
    model(torch.randn(3, 2, 4, 4))  # negative control: outside, both layers do count
    assert not torch.equal(model[0].running_mean, before["0.running_mean"])
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


@pytest.mark.parametrize("path", ["all", "one"])
def test_autocast(path):
    net = supernet()
    if path == "all":
        gates = {table: Softmax()(alpha) for table, alpha in net.alphas.items()}
    else:
        sampler = GumbelTopK(1)
        gates = {t: next(sampler(alpha, SEED).split()) for t, alpha in net.alphas.items()}
    want = net(images(), gates)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(images(), gates)
    # Eight bits in every layer of three cells.
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)
    got.float().sum().backward()
    assert all(alpha.grad.dtype == torch.float32 for alpha in net.arch_parameters())
