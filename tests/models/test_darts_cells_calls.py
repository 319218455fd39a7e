"""Whole cells called in all ways: modes, dtypes, derivatives, and calls that nobody compared."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pyfast_nas as fnas
from pyfast_nas import _ext
from tests.models import darts_cells
from tests.models.darts_cells import cell, inputs

FLOAT64 = {"rtol": 1e-7, "atol": 1e-9}  # a cell of batch norms over few values

WHOLE = 2 + 3  # fused nodes of a cell of three nodes: one for each input, one for each node
EDGES = 9


def test_modes_dtypes_and_frozen_parameters_follow_the_model(fused_nodes):
    module = cell(shrink=True)
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    fused_nodes.clear()
    for change in (
        lambda net: net.eval(),
        lambda net: net.mixes[0].train(),
        lambda net: net.float(),
        lambda net: net.double().train(),
        lambda net: net.to(memory_format=torch.channels_last),
        lambda net: net.requires_grad_(False),
    ):
        for net in (module, twin):
            change(net)
        dtype = next(module.parameters()).dtype
        tolerance = FLOAT64 if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
        arguments = [argument.detach().to(dtype) for argument in inputs(module)]
        torch.testing.assert_close(module(*arguments), twin(*arguments), **tolerance)
    assert len(fused_nodes) == 6 * WHOLE


def test_the_same_tensor_may_come_twice():
    module = cell(wide0=5, wide1=5)
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    x, _, table = inputs(module)
    results = []
    for net in (module, twin):
        y = net(x, x, table)
        results.append((y, torch.autograd.grad(y.square().sum(), [x, *net.parameters()])))
    torch.testing.assert_close(*results, **FLOAT64)


def test_what_a_cell_gives_may_be_changed_in_place():
    module = cell(take=3)
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    results = []
    for net in (module, twin):
        arguments = inputs(net)
        y = net(*arguments).relu_()
        leaves = [*arguments, *net.parameters()]
        results.append((y, torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results, **FLOAT64)


def test_what_was_not_compared_goes_to_the_forward_of_the_model(fused_nodes):
    module = cell()
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    a, b, table = (argument.detach() for argument in inputs(module))
    fused_nodes.clear()
    for call in (
        lambda net: net(a, b, table=table),
        lambda net: net(a, b[:, :, :1, :1], table),
        lambda net: net(a, b[:1], table),
        lambda net: net(a, b, table[:, None].expand(-1, 3, -1)[:, 0]),
    ):
        for net in (module, twin):
            net.eval()
        torch.testing.assert_close(call(module), call(twin), **FLOAT64)
    assert len(fused_nodes) == 3 * EDGES + WHOLE, "the last is an ordinary call"
    fused_nodes.clear()
    for net in (module, twin):
        net.bfloat16()
    arguments = [argument.bfloat16() for argument in (a, b, table)]
    torch.testing.assert_close(module(*arguments), twin(*arguments), rtol=0, atol=0)
    assert not fused_nodes
    with pytest.raises(TypeError, match="table"):
        module(a, b)


def test_without_kernels_and_under_autocast_the_model_runs_as_it_is(fused_nodes):
    module = cell().float()
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    fused_nodes.clear()
    arguments = [argument.detach().float() for argument in inputs(module)]
    for surrounding in (lambda: _ext.use("reference"), lambda: torch.autocast("cpu")):
        with surrounding():
            torch.testing.assert_close(module(*arguments), twin(*arguments), rtol=0, atol=0)
    assert not fused_nodes


def test_second_derivatives():
    module = cell(nodes=1, take=1)
    twin = copy.deepcopy(module)
    assert fnas.accelerate(module).cells
    results = []
    for net in (module, twin):
        arguments = inputs(net)
        leaves = [arguments[2], *net.parameters()]
        first = torch.autograd.grad(net(*arguments).square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    torch.testing.assert_close(*results, **FLOAT64)


def test_checkpointed_cells():
    module = cell()
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    results = []
    for net in (module, twin):
        arguments = inputs(net)
        y = checkpoint(net, *arguments, use_reentrant=False)
        leaves = [*arguments, *net.parameters()]
        results.append((y, torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results, **FLOAT64)


@pytest.mark.slow  # the compiler
def test_compiles_with_the_surrounding_model():
    module = cell(nodes=1, take=1)
    fnas.accelerate(module)
    twin = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for net in (compiled, twin):
        arguments = inputs(module)
        y = net(*arguments)
        leaves = [*arguments, *net.parameters()]
        results.append((y, torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results, **FLOAT64)


def test_nothing_of_the_comparison_is_left_behind():
    model = darts_cells.tower()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert fnas.accelerate(model.eval()).cells
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())
