"""Whole cells with one input of models that we did not write: one operator a cell, or none."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyfast_nas as fnas
from pyfast_nas.bench.plain_nas_bench_201 import PlainNASBench201
from tests.models import nas_bench_201_cells as cells
from tests.models import nas_bench_201_style
from tests.models.darts_cells import Classic, outcome
from tests.models.darts_cells import inputs as two_inputs
from tests.models.nas_bench_201_cells import cell, inputs

FLOAT64 = {"rtol": 1e-7, "atol": 1e-9}  # a whole network of batch norms over few values

MODELS = {
    "edges": lambda: cells.District(),
    "edges, affine": lambda: cells.District(wide=3, cells=2, nodes=2, affine=True),
    "benchmark": lambda: PlainNASBench201(channels=4, blocks=1, classes=4),
}

EDGES = 6  # of a cell of three nodes


def batch(step=0, dtype=torch.float64):
    """Images whose class is their brightest corner."""
    generator = torch.Generator().manual_seed(step % 4)
    labels = torch.randint(4, (12,), generator=generator)
    images = torch.randn(12, 3, 8, 8, generator=generator, dtype=torch.float64)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[:, row : row + 4, column : column + 4] += 2
    return images.to(dtype), labels


def same(module, twin, arguments=None):
    """Assert that both do the same from the same state on."""
    arguments = arguments or inputs(module)
    torch.testing.assert_close(outcome(module, arguments), outcome(twin, arguments), **FLOAT64)


@pytest.mark.parametrize("name", MODELS)
def test_same_outputs_gradients_and_statistics(name, fused_nodes, fused_cells):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    twin = copy.deepcopy(model)
    report = fnas.accelerate(model)
    wholes = 6 if "affine" in name else 3
    nodes = 2 if "affine" in name else 3
    assert len(report.cells) == wholes and not report.left_alone and not report.plain
    assert list(model.state_dict()) == list(twin.state_dict())
    fused_nodes.clear()
    fused_cells.clear()
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
    # Where biases stand in front of running statistics, in evaluation, nodes run one by one.
    calls = 6 if name == "benchmark" else 8
    assert fused_cells == [nodes] * calls * wholes and len(fused_nodes) == 8 * wholes * nodes


def learn(model, steps, dtype=torch.float64):
    """Train weights and table together; the loss of every step."""
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
    plain = cells.District(affine=True)
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


# How to make a cell, its fused nodes, and whether they run as one operator.
SHAPES = {
    "three nodes": (lambda: cell(), 3, True),
    "four nodes": (lambda: cell(nodes=4), 4, True),
    "two nodes": (lambda: cell(nodes=2), 2, True),
    "one node": (lambda: cell(nodes=1), 1, True),
    "five candidates": (lambda: cell(cells.FullDense, affine=True), 3, True),
    "edges in a dictionary": (lambda: cell(cells.Named), 3, True),
    "last two of three": (lambda: cell(cells.LastTwo), 3, False),
    "fitted": (lambda: cell(cells.Fitted), 4, True),
    "fitted, one node": (lambda: cell(cells.Fitted, nodes=1), 2, True),
    "fitted, halved": (lambda: cell(cells.Halved), 4, True),
    "a foreign layer before the edges": (lambda: cell(cells.Foreign), 3, True),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_cells_of_many_shapes_run_whole(shape, training, fused_nodes, fused_cells):
    make, nodes, at_once = SHAPES[shape]
    module = make().train(training)
    twin = copy.deepcopy(module)
    report = fnas.accelerate(module)
    assert list(report.cells) == [""] and not report.left_alone, report
    fused_nodes.clear()
    fused_cells.clear()
    for _ in range(2):
        same(module, twin)
    assert len(fused_nodes) == 2 * nodes and fused_cells == [nodes] * (2 * at_once)


def test_cells_that_do_their_own_sums_run_as_one_operator(fused_nodes, fused_cells):
    torch.manual_seed(0)
    module = nas_bench_201_style.DenseCell(4, affine=True).double()
    twin = copy.deepcopy(module)
    assert fnas.accelerate(module).replaced == {"": "30 of 30 candidates"}
    fused_nodes.clear()
    fused_cells.clear()
    generator = torch.Generator().manual_seed(1)
    arguments = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 4, 8, 8), (6, 5))
    ]
    same(module, twin, arguments)
    assert fused_cells == [3] and len(fused_nodes) == 3
    calls = []
    module.links["2<-1"][3].op[1].register_forward_hook(lambda *_: calls.append(1))
    same(module, twin, arguments)
    assert fused_cells == [3] and len(fused_nodes) == 6 and calls == [1]


def test_two_inputs_and_one_state_run_as_one_operator(fused_nodes, fused_cells):
    torch.manual_seed(0)
    module = Classic(take=1).double()
    twin = copy.deepcopy(module)
    assert fnas.accelerate(module).cells
    fused_nodes.clear()
    fused_cells.clear()
    same(module, twin, two_inputs(module))
    assert fused_cells == [5] and len(fused_nodes) == 5


LIARS = {
    cells.BySource: "the output differs in training mode",
    cells.Summed: "the output differs in training mode",
    cells.WithInput: "the output differs in training mode",
    cells.SecondLast: "the output differs in training mode",
    cells.Rectified: "the output differs in training mode",
    cells.Softened: "the output differs in training mode",
    cells.Averaged: "the output differs in training mode",
    cells.Chained: "the output differs in training mode",
    cells.Short: "the output differs in training mode",
    cells.Dropped: "the output differs in training mode",
    cells.OtherInEvaluation: "the output differs in evaluation mode",
    cells.WithoutGradient: "the gradient of the input differs in training mode",
    cells.InPlace: "the input is changed in place",
    cells.Fickle: "its forward fails .* KeyError: 'not here'",
    cells.Trusting: r"its forward takes \(signal, table, trust\), not \(x, weights\)",
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
    assert type(module) is kind and len(report.replaced) == 2 * EDGES
    if kind in (cells.Fickle, cells.Trusting, cells.Dropped):
        return
    fused_nodes.clear()
    same(module, twin)
    assert len(fused_nodes) == EDGES


def test_lists_of_edges_that_are_no_cell_are_left_alone():
    """Four edges belong to no cell, and nobody gives a table to a forward that takes none."""

    class Chain(cells.Dense):
        def forward(self, signal):
            for lane in self.lanes:
                signal = lane(signal, signal.new_ones(3))
            return signal

    module = cell()
    del module.lanes[4:]
    report = fnas.accelerate(nn.ModuleDict({"four": module, "chain": Chain()}))
    assert len(report.replaced) == 4 + EDGES and not report.cells and not report.left_alone


def test_the_report_says_what_runs_whole():
    torch.manual_seed(0)
    model = nn.ModuleDict({"all": cells.District(), "foreign": cell(cells.Foreign)})
    assert str(fnas.accelerate(model)).splitlines() == [
        "replaced 24 modules",
        "  5 of 5 candidates in a fused node: all.blocks.0.lanes.0, all.blocks.0.lanes.1, "
        "all.blocks.0.lanes.2 and 15 more",
        "  3 of 3 candidates in a fused node: foreign.lanes.0, foreign.lanes.1, foreign.lanes.2 "
        "and 3 more",
        "4 cells whole, all edges into a node in one fused node",
        "  3 nodes: all.blocks.0, all.blocks.2, all.blocks.4",
        "  3 nodes; before as a module (not recognised): foreign",
    ]
