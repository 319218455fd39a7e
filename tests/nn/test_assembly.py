"""A cell put together once: whatever changes in it afterwards is seen at the next call."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

from pyfast_nas import _ext
from pyfast_nas.nn import frozen_statistics
from pyfast_nas.nn.cell import Cell
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.primitives import PRIMITIVES

NAMES = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_3x3")
CHANNELS = 4


def make():
    torch.manual_seed(0)
    cell = Cell(
        [NAMES] * 5, previous_channels=(3, 5), channels=CHANNELS, track_running_stats=True
    ).double()
    with torch.no_grad():
        for tensor in (*cell.parameters(), *cell.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape))
    return cell


def inputs(size=6, dtype=torch.float64, samples=3):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(samples, c, size, size, generator=generator, dtype=dtype).requires_grad_()
        for c in (3, 5)
    ]


def gate(active=None, straight_through=False, dtype=torch.float64, learned=True):
    generator = torch.Generator().manual_seed(2)
    width = len(NAMES) if active is None else len(active[0])
    weights = torch.rand(5, width, generator=generator, dtype=torch.float64).to(dtype) + 0.1
    return GateOutput(weights.requires_grad_(learned), active, straight_through)


def results(cell, xs, table):
    """Outcome, gradients of everything, and buffers."""
    y = cell(*xs, table)
    leaves = [t for t in (*xs, table.weights, *cell.parameters()) if t.requires_grad]
    found = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True, materialize_grads=True)
    return [y.detach(), *found, *(b.clone() for b in cell.buffers())]


def assert_as_plain(cell, xs=None, table=None):
    """The cell computes what a copy of it computes without kernels."""
    xs, table = xs or inputs(), table or gate()
    twin = copy.deepcopy(cell)
    with _ext.use("reference"):
        want = results(twin, xs, table)
    for a, b in zip(results(cell, xs, table), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, float(b.abs().max())))


def replace_candidate(cell):
    cell.edges[3].candidates["sep_conv_3x3"] = PRIMITIVES["sep_conv_5x5"](
        CHANNELS, 1, True, True
    ).double()


def replace_by_unknown(cell):
    cell.edges[0].candidates["skip_connect"] = nn.Tanh()


def replace_candidates(cell):
    other = copy.deepcopy(cell.edges[1].candidates)
    nn.init.normal_(other["sep_conv_3x3"][1].weight)
    cell.edges[1].candidates = other


def replace_edge(cell):
    cell.edges[2] = copy.deepcopy(cell.edges[4])


def replace_preprocess(cell):
    other = copy.deepcopy(cell.preprocess1)
    nn.init.normal_(next(other.parameters()))
    cell.preprocess1 = other


def replace_parameter(cell):
    layer = next(m for m in cell.edges[2].modules() if isinstance(m, nn.Conv2d))
    layer.weight = nn.Parameter(layer.weight.detach() * 2)


def change_parameter(cell):
    with torch.no_grad():
        next(cell.edges[2].parameters()).mul_(2)


def freeze(cell):
    for parameter in cell.edges[1].parameters():
        parameter.requires_grad_(False)


def norms(cell):
    return [m for m in cell.modules() if isinstance(m, nn.BatchNorm2d)]


def evaluate_one(cell):
    norms(cell)[4].eval()


def stop_tracking(cell):
    norms(cell)[5].track_running_stats = False


def change_eps(cell):
    norms(cell)[3].eps = 0.3


def change_momentum(cell):
    norms(cell)[3].momentum = 0.7


def forget_statistics(cell):
    norms(cell)[2].running_mean = norms(cell)[2].running_var = None


def change_dilation(cell):
    layer = next(m for m in cell.edges[0].modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    layer.dilation, layer.padding = (2, 2), (2, 2)


def set_forward(cell):
    candidate = cell.edges[0].candidates["skip_connect"]
    candidate.forward = lambda x: 2 * x


CHANGES = [
    *(replace_candidate, replace_by_unknown, replace_candidates, replace_edge, replace_preprocess),
    *(replace_parameter, change_parameter, freeze, evaluate_one, stop_tracking, change_eps),
    *(change_momentum, forget_statistics, change_dilation, set_forward),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_changes_is_seen(change):
    cell = make()
    assert_as_plain(cell)
    change(cell)
    for _ in range(2):
        assert_as_plain(cell)


def test_calls_of_every_kind_in_turn():
    cell = make()
    active = ((3, 1),) * 5
    calls = [
        {},
        {"xs": inputs(8)},
        {"table": gate(active)},
        {"table": gate(((1, 3),) * 5)},
        {"table": gate(((2,),) * 5, straight_through=True)},
        {"table": gate(learned=False)},
        {},
    ]
    for call in calls * 2:
        assert_as_plain(cell, **call)
        with frozen_statistics(cell):
            assert_as_plain(cell, **call)
        cell.eval()
        assert_as_plain(cell, **call)
        cell.train()


@pytest.fixture
def planned(monkeypatch):
    """Count how often a cell is put together."""
    if not _ext.compiled_for(torch.device("cpu")):
        pytest.skip("no compiled kernels for the CPU in this installation")
    from pyfast_nas.nn import assembly

    calls = []
    monkeypatch.setattr(
        assembly, "plan_cell", lambda *a, f=assembly.plan_cell: calls.append(1) or f(*a)
    )
    return calls


def test_it_is_put_together_once(fused_nodes, planned):
    cell = make()
    for _ in range(3):
        results(cell, inputs(), gate())
    assert len(planned) == 1
    assert len(fused_nodes) == 3 * 4


def test_passes_of_two_kinds_in_turn_find_it_again(planned):
    cell = make()
    for _ in range(3):
        with frozen_statistics(cell):
            results(cell, inputs(), gate())
        results(cell, inputs(), gate())
    assert len(planned) == 2


def test_inference_mode_leaves_nothing_behind():
    cell = make()
    with torch.inference_mode():
        first = cell(*inputs(), gate(learned=False))
    assert_as_plain(cell)
    with torch.inference_mode():
        assert cell(*inputs(), gate(learned=False)).is_inference() and first.is_inference()


def test_parameters_that_change_in_their_place_are_checked_again():
    cell = make()
    assert_as_plain(cell)
    layer = next(m for m in cell.edges[2].modules() if isinstance(m, nn.Conv2d))
    before = layer.weight.data
    for wrong in (before.float(), before[:2], before.transpose(0, 1)):
        layer.weight.data = wrong
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            cell(*inputs(), gate())
    layer.weight.data = before
    assert_as_plain(cell)


def test_a_hook_is_called():
    cell = make()
    assert_as_plain(cell)
    seen = []
    layer = cell.edges[2].candidates["sep_conv_3x3"][1]
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    assert_as_plain(cell)
    assert seen
    handle.remove()
    seen.clear()
    assert_as_plain(cell)


def test_dtypes_take_turns():
    cell = make()
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-3), (torch.float64, 1e-9)):
        cell.to(dtype)
        xs, table = inputs(dtype=dtype), gate(dtype=dtype)
        twin = copy.deepcopy(cell)
        with _ext.use("reference"):
            want = twin(*xs, table)
        torch.testing.assert_close(cell(*xs, table), want, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_a_copy_is_put_together_anew(how):
    cell = make()
    assert_as_plain(cell)
    if how == "copy":
        twin = copy.deepcopy(cell)
    else:
        file = io.BytesIO()
        torch.save(cell, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert_as_plain(twin)
    assert_as_plain(cell)


def test_nothing_of_a_call_is_held():
    cell = make()
    xs, table = inputs(), gate()
    y = cell(*xs, table)
    held = [weakref.ref(t) for t in (*xs, table.weights, y)]
    del xs, table, y
    gc.collect()
    assert [ref() for ref in held] == [None] * 4


def test_zero_weights_run_nothing():
    """Nobody can tell whether a term of weight zero ran, if nothing of it is learned or tracked."""
    cell = make().eval()
    for parameter in cell.parameters():
        parameter.requires_grad_(False)
    xs = [x.detach() for x in inputs()]
    for zero in (False, True, False):
        table = gate(learned=False)
        if zero:
            table.weights[:, 3] = 0
        twin = copy.deepcopy(cell)
        with _ext.use("reference"):
            want = twin(*xs, table)
        torch.testing.assert_close(cell(*xs, table), want)
