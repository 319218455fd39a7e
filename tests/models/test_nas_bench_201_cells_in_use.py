"""Whole cells with one input in a user's hands: changes in place, hooks, modes, restoring."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyfast_nas as fnas
from pyfast_nas.bench.plain_nas_bench_201 import PlainStageCell
from tests.models import nas_bench_201_cells as cells
from tests.models import nas_bench_201_style
from tests.models.darts_cells import outcome
from tests.models.nas_bench_201_cells import cell, inputs

FLOAT64 = {"rtol": 1e-7, "atol": 1e-9}  # a cell of batch norms over few values

WHOLE = 3  # fused nodes of a cell of three nodes
EDGES = 6


def same(module, twin, arguments=None):
    """Assert that both do the same from the same state on."""
    arguments = arguments or inputs(module)
    torch.testing.assert_close(outcome(module, arguments), outcome(twin, arguments), **FLOAT64)


IN_PLACE = {
    "edges": (lambda: cell(cells.FullDense, affine=True), (4, 5)),
    "fitted": (lambda: cell(cells.Fitted), (5, 3)),
    "last two": (lambda: cell(cells.LastTwo), (4, 3)),
    "benchmark": (lambda: PlainStageCell(4).double(), (4, 5)),
    "its own sums": (lambda: nas_bench_201_style.DenseCell(4).double(), (4, 5)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_a_cell_gives_may_be_changed_in_place(name, fused_cells):
    make, (wide, columns) = IN_PLACE[name]
    torch.manual_seed(0)
    module = make()
    twin = copy.deepcopy(module)
    assert fnas.accelerate(module).replaced
    fused_cells.clear()
    x = torch.randn(3, wide, 8, 8, dtype=torch.float64, requires_grad=True)
    table = torch.randn(EDGES, columns, dtype=torch.float64, requires_grad=True)
    results = []
    for net in (module, twin):
        y = torch.relu_(net(x, table))
        gradients = torch.autograd.grad(y.square().sum(), [x, table, *net.parameters()])
        results.append((y.detach(), gradients))
    torch.testing.assert_close(*results, **FLOAT64)
    assert len(fused_cells) == (name != "last two")


@pytest.mark.parametrize(
    ("where", "nodes", "at_once"),
    [
        (lambda module: module.lanes[3], EDGES, False),
        (lambda module: module.lanes[3].tools["conv"].op[1], 1 + WHOLE, False),
        (lambda module: module.before, WHOLE, True),
        (lambda module: module, 1 + WHOLE, True),
    ],
    ids=["edge", "candidate", "layer before the edges", "cell"],
)
@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_hooks_are_called_for_as_long_as_they_are_there(
    where, nodes, at_once, early, fused_nodes, fused_cells
):
    module, calls = cell(cells.Fitted), []

    def hook():
        return where(module).register_forward_hook(lambda *_: calls.append(1))

    handle = hook() if early else None
    assert fnas.accelerate(module).cells and not calls
    handle = handle or hook()
    fused_nodes.clear()
    fused_cells.clear()
    twin = copy.deepcopy(module)
    fnas.restore(twin)
    same(module, twin)
    assert calls == [1, 1] and len(fused_nodes) == nodes and bool(fused_cells) is at_once
    handle.remove()
    outcome(module, inputs(module))
    assert calls == [1, 1] and len(fused_nodes) == nodes + 1 + WHOLE
    assert fused_cells[-1:] == [1 + WHOLE]


def test_what_changes_afterwards_is_seen(fused_nodes, fused_cells):
    def replace_candidate(module):
        module.lanes[2].tools["as it is"] = nn.Tanh()

    def replace_edge(module):
        torch.manual_seed(5)
        module.lanes[2] = cells.Slim(4).double()

    def freeze(module):
        module.lanes[2].requires_grad_(False).eval()

    def fewer(module):
        module.nodes = 2

    for change, nodes, at_once in (
        (replace_candidate, WHOLE, 0),
        (replace_edge, EDGES - 1, 0),
        (freeze, WHOLE, 1),
        (fewer, 3, 0),
    ):
        module = cell()
        twin = copy.deepcopy(module)
        assert fnas.accelerate(module).cells
        fused_nodes.clear()
        fused_cells.clear()
        for net in (module, twin):
            change(net)
        results = []
        for net in (module, twin):
            x, table = inputs(net)
            y = net(x, table)
            leaves = [x, table, *(p for p in net.parameters() if p.requires_grad)]
            gradients = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True)
            results.append((y.detach(), gradients, list(net.buffers())))
        torch.testing.assert_close(*results, **FLOAT64)
        assert (len(fused_nodes), len(fused_cells)) == (nodes, at_once), change


def test_one_hot_weights_run_what_they_choose(fused_nodes, fused_cells):
    """As in algorithms that sample one candidate: the others need not run, the numbers stay."""
    module = cell(affine=False).requires_grad_(False)
    twin = copy.deepcopy(module)
    fnas.accelerate(module.eval())
    twin.eval()
    table = torch.eye(3, dtype=torch.float64)[[2, 1, 2, 2, 1, 2]]
    x = inputs(module)[0]
    fused_nodes.clear()
    fused_cells.clear()
    results = [(y := net(x, table), torch.autograd.grad(y.sum(), x)) for net in (module, twin)]
    torch.testing.assert_close(*results, **FLOAT64)
    assert fused_nodes == [1, 2, 3] and fused_cells == [3]
    table = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 2, 1, 0]]  # nothing reaches a node
    torch.testing.assert_close(module(x, table), twin(x, table), **FLOAT64)


def test_modes_dtypes_and_layouts_follow_the_model(fused_cells):
    module = cell()
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    fused_cells.clear()
    for change in (
        lambda net: net.eval(),
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
    assert fused_cells == [WHOLE] * 5
    x, table = (argument.detach() for argument in inputs(module))
    torch.testing.assert_close(module(x, table=table), twin(x, table), **FLOAT64)
    with torch.autocast("cpu"):
        torch.testing.assert_close(
            module.float()(x.float(), table.float()),
            twin.float()(x.float(), table.float()),
            rtol=0,
            atol=0,
        )
    assert len(fused_cells) == 5


def test_second_derivatives_and_checkpoints():
    for make, run in (
        (lambda: cell(nodes=2), lambda net, *given: net(*given)),
        (lambda: cell(), lambda net, *given: checkpoint(net, *given, use_reentrant=False)),
    ):
        module = make()
        twin = copy.deepcopy(module)
        assert fnas.accelerate(module).cells
        results = []
        for net in (module, twin):
            arguments = inputs(net)
            leaves = [*arguments, *net.parameters()]
            loss = run(net, *arguments).square().sum()
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            results.append(
                (first, torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
            )
        torch.testing.assert_close(*results, **FLOAT64)


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "a copy"])
def test_restore_undoes_cells_and_edges_alike(copied, fused_nodes):
    module = cell()
    attributes, text = set(vars(module)), repr(module)
    want = outcome(copy.deepcopy(module), inputs(module))
    before = dict(module.named_parameters())
    assert fnas.accelerate(module).cells == {"": "3 nodes"}
    assert isinstance(module, cells.Dense) and repr(module) == text
    assert all(before[name] is p for name, p in module.named_parameters())
    again = fnas.accelerate(module)
    assert again.cells == {"": "replaced before"} and len(again.replaced) == EDGES
    if copied:
        module = copy.deepcopy(module)
    assert fnas.restore(module) == 1 + EDGES and fnas.restore(module) == 0
    assert type(module) is cells.Dense and set(vars(module)) == attributes
    assert {type(lane) for lane in module.lanes} == {cells.Slim}
    fused_nodes.clear()
    torch.testing.assert_close(outcome(module, inputs(module)), want, rtol=0, atol=0)
    assert not fused_nodes


def test_a_cell_goes_on_edge_by_edge_where_one_edge_is_put_back(fused_nodes):
    module = cell()
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    fnas.restore(module.lanes[4])
    fused_nodes.clear()
    same(module, twin)
    assert len(fused_nodes) == EDGES - 1
