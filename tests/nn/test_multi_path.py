"""Several active candidates of every edge: whole cells and supernets against a plain composition.

Names on the host and flags on the device run the same candidates; K goes from one to all.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas import _ext, ops, spaces
from pyfast_nas.algorithms.sub_graphs import draw_sub_graphs
from pyfast_nas.nn import GateOutput, MixedOp
from pyfast_nas.nn.cell import DenseCell
from tests.gpu.waits import WouldWait

DOUBLE = {"rtol": 1e-10, "atol": 1e-10}
SEED = torch.tensor([2024, 5])
SPACES = {
    "darts": lambda: spaces.DARTS(channels=2, cells=3),
    "nas-bench-201": lambda: spaces.NASBench201(channels=2, cells=1),
}
PATHS = [("darts", k) for k in range(1, 9)] + [("nas-bench-201", k) for k in range(1, 6)]


def supernet_of(name):
    torch.manual_seed(0)
    supernet = SPACES[name]().supernet().double()
    with torch.no_grad():
        for number, logits in enumerate(supernet.alphas.values()):
            logits.copy_(torch.randn(logits.shape, generator=generator(number)))
    return supernet


def generator(seed):
    return torch.Generator().manual_seed(seed)


def batch(name):
    images = torch.randn(2, 3, 8, 8, generator=generator(7), dtype=torch.float64)
    return images, torch.tensor([0, 1])


def draw(supernet, k, on_device=False, relaxation="conditional"):
    return draw_sub_graphs(
        supernet.logits(), k, tau=0.9, seed=SEED, relaxation=relaxation, on_device=on_device
    )


def composed(cell, inputs, gate, layers=()):
    """The printed sum, candidate by candidate: no operator of the package takes part."""
    states = [layer(x) for layer, x in zip(layers, inputs, strict=True)] if layers else [*inputs]
    row = 0
    for edges in cell._rows():
        total = 0
        for edge, state in zip(edges, states, strict=True):
            for weight, candidate in zip(gate.weights[row], gate.active[row], strict=True):
                total = total + weight * edge.candidate(candidate)(state)
            row += 1
        states.append(total)
    return torch.cat(states[-cell.multiplier :], dim=1)


@pytest.fixture
def composition(monkeypatch):
    """Make every cell the plain composition while the returned function runs."""

    def run(function):
        with monkeypatch.context() as patch, _ext.use("reference"):
            patch.setattr(DenseCell, "mix", composed)
            return function()

    return run


def results(supernet, gates, name):
    """Loss and the gradients of every weight and of the logits, through the gate's weights."""
    images, labels = batch(name)
    loss = F.cross_entropy(supernet(images, gates), labels)
    leaves = [*supernet.weight_parameters(), *supernet.alphas.values()]
    return loss, torch.autograd.grad(loss, leaves, allow_unused=True)


@pytest.mark.parametrize("on_device", [False, True], ids=["names", "flags"])
@pytest.mark.parametrize(("name", "k"), PATHS)
def test_a_supernet_is_the_composition(name, k, on_device, composition, fused_nodes):
    supernet = supernet_of(name)
    other = copy.deepcopy(supernet)
    want_loss, want = composition(lambda: results(other, draw(other, k).mixed_gates(), name))
    loss, got = results(supernet, draw(supernet, k, on_device).mixed_gates(), name)
    torch.testing.assert_close(loss, want_loss, **DOUBLE)
    for one, two in zip(got, want, strict=True):
        if on_device and two is None:
            assert one is None or not one.any()  # the device knows no "none"
        else:
            assert (one is None) == (two is None)
            torch.testing.assert_close(one, two, **DOUBLE)
    assert sum(fused_nodes) > 0


@pytest.mark.parametrize("on_device", [False, True], ids=["names", "flags"])
@pytest.mark.parametrize(("name", "k"), PATHS)
def test_a_cell_and_its_inputs(name, k, on_device, fused_nodes):
    """Gradients of what comes in and of every gate weight; the weights of others get none."""
    supernet = supernet_of(name)
    cell = next(m for m in supernet.modules() if isinstance(m, DenseCell))
    table = next(iter(supernet.alphas))
    drawn = draw(supernet, k, on_device)
    gate = drawn.mixed_gates()[table]
    named = draw(supernet, k).mixed_gates()[table]
    layers = [m for n, m in cell.named_children() if n.startswith("preprocess")]
    channels = [6, 6] if layers else [2]
    results = []
    for mix, used in ((composed, named), (DenseCell.mix, gate)):
        xs = [
            torch.randn(
                2, width, 6, 6, generator=generator(i), dtype=torch.float64
            ).requires_grad_()
            for i, width in enumerate(channels)
        ]
        weights = used.weights.detach().requires_grad_()
        active = {"active": used.active, "selected": used.selected}
        y = mix(cell, xs, type(used)(weights, **active), layers)
        target = torch.randn(y.shape, generator=generator(9), dtype=torch.float64)
        results.append([y, *torch.autograd.grad((y * target).sum(), [*xs, weights])])
    want, got = results
    if on_device:
        flags = gate.selected
        assert int(flags.sum()) == k * len(flags)
        assert not got[-1][~flags].any(), "the weight of what did not run has a gradient"
        got[-1] = got[-1].gather(1, drawn.dealt[: len(flags)])
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, **DOUBLE)
    assert fused_nodes


@pytest.mark.parametrize(("name", "k"), [("darts", 3), ("nas-bench-201", 2)])
def test_candidates_that_did_not_run_get_no_gradient(name, k):
    supernet = supernet_of(name)
    gates, (images, labels) = draw(supernet, k).mixed_gates(), batch(name)
    F.cross_entropy(supernet(images, gates), labels).backward()
    tables = dict(zip(supernet.alphas, gates.values(), strict=True))
    ran = missing = 0
    for cell in (m for m in supernet.modules() if isinstance(m, DenseCell)):
        table = table_of(supernet, cell, tables)
        for row, edge in enumerate(cell.edges):
            for index in range(edge.num_ops):
                for parameter in edge.candidate(index).parameters():
                    if index in tables[table].active[row]:
                        ran += parameter.grad is not None
                    else:
                        missing += 1
                        assert parameter.grad is None
    assert ran > 0
    assert missing > 0


def table_of(supernet, cell, tables):
    """The table whose rows the edges of a cell are: reduction cells of DARTS have strides."""
    if len(tables) == 1:
        return next(iter(tables))
    strided = any(getattr(m, "stride", 1) in (2, (2, 2)) for m in cell.edges.modules())
    return "reduce" if strided else "normal"


@pytest.mark.parametrize("on_device", [False, True], ids=["names", "flags"])
def test_one_draw_serves_all_edges_of_all_tables(on_device, monkeypatch):
    calls = []

    def counted(logits, *rest, **named):
        calls.append(logits.shape)
        return draw_all(logits, *rest, **named)

    draw_all = ops.gumbel_topk
    monkeypatch.setattr(ops, "gumbel_topk", counted)
    supernet = supernet_of("darts")
    results(supernet, draw(supernet, 3, on_device).mixed_gates(), "darts")
    assert calls == [(28, 8)]


@pytest.mark.parametrize(("name", "k"), [("darts", 4), ("nas-bench-201", 3)])
def test_the_device_path_asks_the_host_for_nothing(name, k, fused_nodes):
    """Drawn by flags, a pass and its backward read no value back and send none over."""
    supernet = supernet_of(name)
    results(supernet, draw(supernet, k, True).mixed_gates(), name)  # what is put together once
    images, labels = batch(name)
    leaves = [*supernet.weight_parameters(), *supernet.alphas.values()]
    drawn = draw(supernet, k, True)
    with WouldWait():
        loss = F.cross_entropy(supernet(images, drawn.mixed_gates()), labels)
        torch.autograd.grad(loss, leaves, allow_unused=True)
    with pytest.raises(RuntimeError, match="synchronizing"), WouldWait():
        int(loss)


@pytest.mark.parametrize("relaxation", ["shared", "conditional", "subset"])
def test_every_relaxation_reaches_the_logits(relaxation):
    supernet = supernet_of("nas-bench-201")
    for on_device in (False, True):
        gates = draw(supernet, 2, on_device, relaxation).mixed_gates()
        _, gradients = results(supernet, gates, "nas-bench-201")
        assert float(gradients[-1].abs().max()) > 0


def test_all_candidates_are_the_dense_sum():
    """At K = M, with the weights of one softmax, it is the supernet of DARTS with noise."""
    supernet = supernet_of("darts")
    drawn = draw(supernet, 8, relaxation="shared")
    dense = draw(supernet, 8, True, relaxation="shared")
    torch.testing.assert_close(
        dense.mixed_gates()["normal"].weights.sum(1), torch.ones(14).double()
    )
    images, _ = batch("darts")
    widths = {table: gate.weights for table, gate in dense.mixed_gates().items()}
    mixed = {table: GateOutput(weights) for table, weights in widths.items()}
    torch.testing.assert_close(
        supernet(images, drawn.mixed_gates()), supernet(images, mixed), **DOUBLE
    )


def test_edges_name_their_own_candidates():
    """Rows of one gate may run different candidates, in any order of the columns."""
    edge = MixedOp([torch.nn.Identity(), torch.nn.Tanh(), torch.nn.Sigmoid()]).double()
    x = torch.randn(2, 3, dtype=torch.float64, generator=generator(1))
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    y = edge(x, weights, active=[2, 0])
    torch.testing.assert_close(y, 0.3 * torch.sigmoid(x) + 0.7 * x)
