"""Whole cells in a user's hands: hooks, changes, restoring, copies."""

import copy
import io

import pytest
import torch
from torch import nn

import pyfast_nas as fnas
from tests.models import darts_cells
from tests.models.darts_cells import cell, inputs, outcome

FLOAT64 = {"rtol": 1e-7, "atol": 1e-9}  # a cell of batch norms over few values

WHOLE = 2 + 3  # fused nodes of a cell of three nodes: one for each input, one for each node
EDGES = 9


def same(module, twin, arguments=None):
    """Assert that both do the same from the same state on."""
    arguments = arguments or inputs(module)
    torch.testing.assert_close(outcome(module, arguments), outcome(twin, arguments), **FLOAT64)


def changed(change, fused_nodes):
    """Return how many fused nodes run after a change, which changes no number."""
    module = cell()
    twin = copy.deepcopy(module)
    assert fnas.accelerate(module).cells
    fused_nodes.clear()
    for net in (module, twin):
        change(net)
    same(module, twin)
    return len(fused_nodes)


@pytest.mark.parametrize(
    ("where", "nodes"),
    [
        (lambda module: module.mixes[3], EDGES),
        (lambda module: module.mixes[3].paths[2].net[1], WHOLE),
        (lambda module: module.before1[1], WHOLE - 1),
        (lambda module: module, WHOLE),
    ],
    ids=["edge", "candidate", "layer before the edges", "cell"],
)
@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_hooks_are_called_for_as_long_as_they_are_there(where, nodes, early, fused_nodes):
    module, calls = cell(), []

    def hook():
        return where(module).register_forward_hook(lambda *_: calls.append(1))

    handle = hook() if early else None
    assert fnas.accelerate(module).cells and not calls
    handle = handle or hook()
    fused_nodes.clear()
    twin = copy.deepcopy(module)
    fnas.restore(twin)
    same(module, twin)
    assert calls == [1, 1] and len(fused_nodes) == nodes
    handle.remove()
    outcome(module, inputs(module))
    assert calls == [1, 1] and len(fused_nodes) == nodes + WHOLE


def test_backward_hooks_of_an_edge_are_called():
    module, calls = cell(), []
    fnas.accelerate(module)
    module.mixes[0].register_full_backward_hook(lambda *_: calls.append(1))
    outcome(module, inputs(module))
    assert calls == [1]


def replace_edge(module):
    torch.manual_seed(5)
    module.mixes[2] = darts_cells.Lean(4, 1).double()


def set_forward(module):
    edge = module.mixes[2]
    edge.forward = lambda data, parts: type(edge).forward(edge, data, parts) * 2


def add_candidate(module):
    """One that no weight is left for."""
    for edge in module.mixes:
        edge.forward = lambda data, parts, edge=edge: sum(
            part * path(data) for part, path in zip(parts, edge.paths, strict=False)
        )
        edge.paths.append(nn.Identity())


def replace_candidate(module):
    module.mixes[2].paths[0] = nn.Tanh()


def replace_layer(module):
    torch.manual_seed(5)
    module.before0 = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.Tanh()).double()


def take_all(module):
    module.take = 3


@pytest.mark.parametrize(
    ("change", "nodes"),
    [
        (replace_edge, EDGES - 1),
        (set_forward, EDGES),
        (add_candidate, 0),
        (replace_candidate, WHOLE),
        (replace_layer, WHOLE - 1),
        (take_all, EDGES),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_changes_afterwards_is_seen(change, nodes, fused_nodes):
    assert changed(change, fused_nodes) == nodes


def test_restore_undoes_cells_and_edges_alike(fused_nodes):
    module = cell()
    attributes, text = set(vars(module)), repr(module)
    before = dict(module.named_parameters())
    report = fnas.accelerate(module)
    assert report.cells and isinstance(module, darts_cells.Classic) and repr(module) == text
    assert all(before[name] is p for name, p in module.named_parameters())
    assert fnas.restore(module) == 1 + EDGES and fnas.restore(module) == 0
    assert type(module) is darts_cells.Classic and set(vars(module)) == attributes
    assert {type(edge) for edge in module.mixes} == {darts_cells.Lean}
    fused_nodes.clear()
    outcome(module, inputs(module))
    assert not fused_nodes


def test_a_cell_goes_on_edge_by_edge_where_one_edge_is_put_back(fused_nodes):
    module = cell()
    twin = copy.deepcopy(module)
    fnas.accelerate(module)
    fnas.restore(module.mixes[4])
    fused_nodes.clear()
    same(module, twin)
    assert len(fused_nodes) == EDGES - 1
    report = fnas.accelerate(module)
    assert report.cells == {"": "replaced before"} and len(report.replaced) == EDGES
    fused_nodes.clear()
    same(module, twin)
    assert len(fused_nodes) == WHOLE


def test_edges_that_were_replaced_before_are_taken_together(fused_nodes):
    module = cell()
    twin = copy.deepcopy(module)
    assert not fnas.accelerate(module.mixes).cells
    report = fnas.accelerate(module)
    assert list(report.cells) == [""]
    assert set(report.replaced.values()) == {"replaced before, its candidates"}
    fused_nodes.clear()
    same(module, twin)
    assert len(fused_nodes) == WHOLE
    assert fnas.restore(module) == 1 + EDGES


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved], ids=["deepcopy", "torch.save"])
@pytest.mark.parametrize("used", [True, False], ids=["used", "fresh"])
def test_copies_run_whole_and_on_their_own(copied, used, fused_nodes):
    module = cell()
    fnas.accelerate(module)
    if used:
        outcome(module, inputs(module))
    twin = copied(module)
    want = outcome(copy.deepcopy(module), inputs(module))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    fused_nodes.clear()
    torch.testing.assert_close(outcome(copy.deepcopy(twin), inputs(twin)), want, **FLOAT64)
    assert len(fused_nodes) == WHOLE
    assert fnas.restore(twin) == 1 + EDGES and type(twin) is darts_cells.Classic
    torch.testing.assert_close(outcome(twin, inputs(twin)), want, **FLOAT64)
