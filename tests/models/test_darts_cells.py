"""Whole cells of models that we did not write: one fused node a node, and what is not one."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyfast_nas as fnas
from pyfast_nas import _ext
from pyfast_nas.bench.memory import kept_bytes
from pyfast_nas.bench.plain_darts import PlainDARTS
from tests.models import darts_cells, darts_style, pc_darts_style
from tests.models.darts_cells import cell, inputs, outcome

FLOAT64 = {"rtol": 1e-7, "atol": 1e-9}  # a whole network of batch norms over few values

MODELS = {
    "darts": lambda: darts_style.Searched(wide=4, affine=True, momentum=0.3),
    "tower": darts_cells.tower,
    "benchmark": lambda: PlainDARTS(channels=2, cells=3, classes=4),
}
SLOW = pytest.param("benchmark", marks=pytest.mark.slow)  # cells of four nodes


def batch(step=0, dtype=torch.float64):
    """Images whose class is their brightest corner."""
    generator = torch.Generator().manual_seed(step % 4)
    labels = torch.randint(4, (12,), generator=generator)
    images = torch.randn(12, 3, 8, 8, generator=generator, dtype=torch.float64)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 2
    return images.to(dtype), labels


@pytest.mark.parametrize("name", ["darts", "tower", SLOW])
def test_same_outputs_gradients_and_statistics(name, fused_nodes):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    twin = copy.deepcopy(model)
    report = fnas.accelerate(model)
    assert len(report.cells) == 3 and not report.left_alone
    assert list(model.state_dict()) == list(twin.state_dict())
    for step, training in enumerate((True, True, False, True)):
        images, labels = batch(step)
        results = []
        for net in (model.train(training), twin.train(training)):
            y = net(images)
            gradients = torch.autograd.grad(
                F.cross_entropy(y, labels), list(net.parameters()), allow_unused=True
            )
            results.append((y.detach(), gradients))
        torch.testing.assert_close(*results, **FLOAT64)
        torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()), **FLOAT64)
        with torch.no_grad():
            torch.testing.assert_close(model(images), twin(images), **FLOAT64)


def learn(model, steps, dtype=torch.float64):
    """Train weights and tables together; the loss of every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=3e-4)
    losses = []
    for step in range(steps):
        images, labels = batch(step, dtype)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.slow  # fifty steps of four networks
def test_same_training_curve_for_fifty_steps():
    """In float64 to rounding; in float32 the curve is as near to that one as the plain one is."""
    torch.manual_seed(0)
    plain = darts_cells.tower()
    nets = {dtype: copy.deepcopy(plain).to(dtype) for dtype in (torch.float64, torch.float32)}
    curves = {}
    for dtype, net in nets.items():
        fast = copy.deepcopy(net)
        assert len(fnas.accelerate(fast).cells) == 3
        curves[dtype] = [learn(net, 50, dtype) for net in (fast, net)]
    got, want = curves[torch.float64]
    assert want[-10:].mean() < 0.8 * want[:10].mean(), "nothing was learnt"
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    errors = [(curve - want).abs() for curve in curves[torch.float32]]
    assert errors[0][:5].max() <= 4 * errors[1][:5].max() + 1e-6
    assert errors[0].max() < 0.05 * (want[:10].mean() - want[-10:].mean()).abs()


SHAPES = {
    "last two of three": lambda: cell(),
    "all of three": lambda: cell(take=3),
    "the last of two": lambda: cell(nodes=2, take=1),
    "one node": lambda: cell(nodes=1, take=1),
    "shrinks": lambda: cell(shrink=True),
    "after one that shrinks": lambda: cell(darts_cells.HalvedBefore),
    "shrinks after one that shrinks": lambda: cell(darts_cells.HalvedBefore, shrink=True),
    "nothing before the edges": lambda: cell(darts_cells.Unfitted),
    "foreign layers before the edges": lambda: cell(darts_cells.Foreign),
    "layers before the edges in another order": lambda: cell(darts_cells.Turned),
    "edges in a dictionary": lambda: cell(darts_cells.Named),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_cells_of_many_shapes_run_whole(shape, training, fused_nodes):
    module = SHAPES[shape]().train(training)
    twin = copy.deepcopy(module)
    report = fnas.accelerate(module)
    assert list(report.cells) == [""] and not report.left_alone, report
    fused_nodes.clear()
    for _ in range(2):
        got, want = (outcome(net, inputs(net)) for net in (module, twin))
        torch.testing.assert_close(got, want, **FLOAT64)
    fits = 0 if shape in ("nothing before the edges", "foreign layers before the edges") else 2
    nodes = module.nodes
    assert len(fused_nodes) == 2 * (fits + nodes), "one call for each node, one for each input"


LIARS = {
    darts_cells.BySource: "the output differs in training mode",
    darts_cells.Mean: "the output differs in training mode",
    darts_cells.Backwards: "the output differs in training mode",
    darts_cells.FirstStates: "the output differs in training mode",
    darts_cells.Softened: "the output differs in training mode",
    darts_cells.Averaged: "the output differs in training mode",
    darts_cells.Chained: "the output differs in training mode",
    darts_cells.Residual: "the output differs in training mode",
    darts_cells.Dropped: "the output differs in training mode",
    darts_cells.OtherInEvaluation: "the output differs in evaluation mode",
    darts_cells.WithoutGradient: "the gradient of the first input differs in training mode",
    darts_cells.InPlace: "the input is changed in place",
    darts_cells.Fickle: "its forward fails .* KeyError: 'not here'",
    darts_cells.Trusting: r"its forward takes \(a, b, table, trust\), not \(s0, s1, weights\)",
}


@pytest.mark.parametrize("kind", LIARS, ids=lambda kind: kind.__name__)
def test_a_cell_that_computes_something_else_runs_edge_by_edge(kind, fused_nodes):
    module = cell(kind)
    twin = copy.deepcopy(module)
    model = nn.ModuleDict({"bad": module, "good": cell()})
    report = fnas.accelerate(model)
    assert list(report.cells) == ["good"] and list(report.left_alone) == ["bad"]
    assert re.search(LIARS[kind], report.left_alone["bad"]), report.left_alone
    assert report.left_alone["bad"].endswith("; its edges run one by one")
    assert type(module) is kind and len(report.replaced) == 18
    if kind in (darts_cells.Fickle, darts_cells.Trusting, darts_cells.Dropped):
        return
    fused_nodes.clear()
    torch.testing.assert_close(
        outcome(module, inputs(module)), outcome(twin, inputs(twin)), **FLOAT64
    )
    assert len(fused_nodes) == 9


def test_a_cell_whose_layers_serve_the_other_input_is_taken_for_what_it_is():
    module = cell(darts_cells.Swapped)
    twin = copy.deepcopy(module)
    report = fnas.accelerate(module)
    assert not report.cells and "differs" in report.left_alone["the model"]
    torch.testing.assert_close(
        outcome(module, inputs(module)), outcome(twin, inputs(twin)), **FLOAT64
    )


def test_edges_on_part_of_the_channels_stay_on_their_own():
    torch.manual_seed(0)
    module = darts_cells.Classic(5, 6, 8)
    module.mixes = nn.ModuleList(pc_darts_style.ShareBlend(8, 1) for _ in range(9))
    report = fnas.accelerate(module)
    assert len(report.replaced) == 9 and not report.cells and not report.left_alone


def test_one_edge_that_is_left_alone_leaves_the_cell_alone():
    class Doubled(darts_cells.Lean):
        def forward(self, data, parts):
            return 2 * super().forward(data, parts)

    module = cell()
    module.mixes[4] = Doubled(4, 1).double()
    twin = copy.deepcopy(module)
    report = fnas.accelerate(module)
    assert list(report.left_alone) == ["mixes.4"] and len(report.replaced) == 8
    assert not report.cells
    torch.testing.assert_close(
        outcome(module, inputs(module)), outcome(twin, inputs(twin)), **FLOAT64
    )


def test_keeps_less_than_edge_by_edge():
    if not _ext.compiled_for(torch.device("cpu")):
        pytest.skip("no compiled kernels for the CPU in this installation")
    torch.manual_seed(0)
    whole = darts_style.Searched(wide=4, steps=3)
    edges = copy.deepcopy(whole)
    for graph in edges.stack:
        assert not fnas.accelerate(graph.links).cells
    assert len(fnas.accelerate(whole).cells) == 3
    images = torch.randn(4, 3, 16, 16)
    kept = [kept_bytes(lambda net=net: net(images), net.parameters()) for net in (whole, edges)]
    assert kept[0] < 0.65 * kept[1], kept


def test_the_report_says_what_runs_whole():
    torch.manual_seed(0)
    model = nn.ModuleDict({"tower": darts_cells.tower(), "foreign": darts_cells.Foreign()})
    report = fnas.accelerate(model)
    assert str(report).splitlines() == [
        "replaced 36 modules",
        "  3 of 3 candidates in a fused node: tower.floors.0.mixes.0, tower.floors.0.mixes.1, "
        "tower.floors.0.mixes.2 and 33 more",
        "4 cells whole, all edges into a node in one fused node",
        "  3 nodes, before0, before1: tower.floors.0, tower.floors.1, tower.floors.2",
        "  3 nodes; before0 as a module (not recognised); "
        "before1 as a module (it has no convolution): foreign",
    ]
