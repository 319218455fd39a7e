"""Gates whose choice stays on the device: what runs is what a gate with names would run."""

import copy

import pytest
import torch
from torch import nn

from pyfast_nas import _ext
from pyfast_nas.nn import GateOutput, MixedOp
from pyfast_nas.nn.cell import Cell
from pyfast_nas.nn.mixed_op import mix_edges

NAMES = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_3x3")
DOUBLE = {"rtol": 1e-9, "atol": 1e-10}
PICKS = [(1, 3, 4, 2, 3), (0, 0, 2, 1, 0), (4, 4, 4, 4, 4), (0, 0, 0, 0, 0)]


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make():
    torch.manual_seed(0)
    cell = Cell([NAMES] * 5, previous_channels=(3, 5), channels=4, track_running_stats=True)
    return cell.double()


def plain_candidate(cell):
    cell.edges[0].candidates["dil_conv_3x3"] = nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Tanh()
    ).double()


def watched_candidate(cell):
    cell.edges[3].candidates["sep_conv_3x3"].register_forward_hook(lambda *_: None)


def evaluated_candidate(cell):
    cell.edges[0].candidates["dil_conv_3x3"].eval()


def averaging_norms(cell):
    for module in cell.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None


CHANGES = [None, plain_candidate, watched_candidate, evaluated_candidate, averaging_norms]


def named(picks, weights):
    return GateOutput(weights, tuple((pick,) for pick in picks), straight_through=True)


def flagged(picks, weights):
    flags = torch.tensor(picks).unsqueeze(1) == torch.arange(len(NAMES))
    return GateOutput(weights.expand(flags.shape), straight_through=True, selected=flags)


def results(cell, gate, picks):
    """Outcome, gradients of everything, and buffers after three passes."""
    xs = [draw(3, channels, 6, 6).requires_grad_() for channels in (3, 5)]
    weights = (draw(5, 1, seed=2).abs() + 0.1).requires_grad_()
    for _ in range(2):
        cell(*xs, gate(picks, weights))
    y = cell(*xs, gate(picks, weights))
    leaves = [*xs, weights, *cell.parameters()]
    loss = (
        y * draw(*y.shape, seed=3)
    ).sum() + 0 * weights.sum()  # where nothing else has a gradient
    found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [y.detach(), *found, *(buffer.clone() for buffer in cell.buffers())]


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__ if c else "as made")
@pytest.mark.parametrize("picks", PICKS, ids=str)
def test_a_cell_runs_what_is_selected(picks, change, mode):
    cell = make()
    if change is not None:
        change(cell)
    other = copy.deepcopy(cell)
    with _ext.use(mode):
        want = results(cell, named, picks)
        got = results(other, flagged, picks)
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, **DOUBLE)


def test_other_flags_through_the_same_cell(fused_nodes):
    """The cell is put together once; flags are of the call."""
    cell = make()
    for picks in (*PICKS, *PICKS):
        want = results(copy.deepcopy(cell), named, picks)
        for one, two in zip(results(cell, flagged, picks), want, strict=True):
            torch.testing.assert_close(one, two, **DOUBLE)
    assert fused_nodes


def test_nothing_leaks_out_of_what_is_not_selected(fused_nodes):
    cell, picks = make(), (1, 2, 1, 2, 1)
    want = results(copy.deepcopy(cell), flagged, picks)
    with torch.no_grad():
        for edge in cell.edges:
            for parameter in edge.parameters():
                parameter.fill_(torch.nan)
    count = len(list(cell.parameters()))
    for one, two in zip(results(cell, flagged, picks)[: 4 + count], want, strict=False):
        torch.testing.assert_close(one, two, **DOUBLE)


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_weights_that_mix(kind):
    """Several may be selected, with weights of their own."""
    torch.manual_seed(0)
    layers = [nn.Tanh(), nn.Sigmoid(), nn.Identity(), nn.ReLU()]
    if kind == "fused":
        layers = [nn.Identity(), nn.MaxPool2d(3, 1, 1), nn.Identity(), nn.AvgPool2d(3, 1, 1)]
    edges = [MixedOp(layers[:2]), MixedOp(layers[2:])]
    weights, x = draw(2, 2).requires_grad_(), draw(2, 3, 4, 4)
    flags = torch.tensor([[True, False], [True, True]])
    y = mix_edges(edges, [x, x], GateOutput(weights, selected=flags))
    masked = mix_edges(edges, [x, x], GateOutput(weights * flags))
    torch.testing.assert_close(y, masked, **DOUBLE)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.sum(), weights, retain_graph=True)[0] for out in (y, masked)),
        **DOUBLE,
    )
    with torch.no_grad():
        torch.testing.assert_close(
            mix_edges(edges, [x, x], GateOutput(weights, selected=flags)), y, **DOUBLE
        )


@pytest.mark.parametrize(
    "arguments",
    [
        {"selected": torch.ones(2, 2, dtype=torch.bool)},
        {"selected": torch.ones(2, 3)},
        {"selected": torch.ones(2, 3, dtype=torch.bool), "active": ((0, 1, 2),) * 2},
    ],
)
def test_refusals(arguments):
    with pytest.raises(ValueError, match="selected must be bool of shape"):
        GateOutput(torch.ones(2, 3), **arguments)
