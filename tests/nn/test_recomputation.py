"""Gates whose backward runs the other candidates again: the gradients of all, the memory of one."""

import copy
import weakref

import pytest
import torch
from torch import nn

from pyfast_nas import _ext
from pyfast_nas.nn import GateOutput, MixedOp, recomputation
from pyfast_nas.nn.cell import Cell
from pyfast_nas.nn.mixed_op import mix_edges
from pyfast_nas.nn.primitives import Noise

NAMES = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_3x3")
PICKS = [(1, 3, 4, 2, 3), (0, 0, 2, 1, 0), (0, 0, 0, 0, 0)]
# The specification's tolerance in double precision.
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def cell():
    torch.manual_seed(0)
    cell = Cell([NAMES] * 5, previous_channels=(3, 5), channels=4, track_running_stats=True)
    return cell.double()


def one_hot(picks):
    return nn.functional.one_hot(torch.tensor(picks), len(NAMES)).double().requires_grad_()


def gates(kind, picks):
    weights = one_hot(picks)
    if kind == "all":
        return GateOutput(weights)
    if kind == "named":
        return GateOutput(weights, tuple((pick,) for pick in picks), recompute=True)
    return GateOutput(weights, selected=weights.detach().bool(), recompute=True)


def gradients(cell, gate):
    xs = [draw(3, channels, 6, 6).requires_grad_() for channels in (3, 5)]
    y = cell(*xs, gate)
    leaves = [gate.weights, *xs, *cell.parameters()]
    loss = (y * draw(*y.shape, seed=3)).sum()
    found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return y.detach(), *found


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["named", "selected"])
@pytest.mark.parametrize("picks", PICKS, ids=str)
def test_gradients_are_those_of_running_all_with_one_hot_weights(kind, picks, mode, cell):
    with _ext.use(mode):
        want = gradients(copy.deepcopy(cell), gates("all", picks))
        got = gradients(cell, gates(kind, picks))
    assert got[1][:2, 1:].abs().min() > 1e-6, "edges from the inputs: no other need be reached"
    assert (got[1][:, 0] == 0).all(), "none"
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, **EXACT)


@pytest.mark.parametrize("kind", ["named", "selected"])
def test_statistics_are_those_of_what_ran_forward(kind, cell):
    picks = PICKS[0]
    other = copy.deepcopy(cell)
    gradients(cell, gates(kind, picks))
    gate = gates(kind, picks)
    other(*(draw(3, channels, 6, 6) for channels in (3, 5)), gate.path())
    for (name, one), two in zip(cell.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two), name
    for row, edge in enumerate(cell.edges):
        for index in range(edge.num_ops):
            counts = [b for n, b in edge.candidate(index).named_buffers() if "num_batches" in n]
            assert all(int(count) == (picks[row] == index) for count in counts)


def test_in_evaluation_mode_it_takes_the_running_statistics(cell):
    gradients(cell, gates("all", PICKS[0]))  # statistics that are not those of a batch
    cell.eval()
    before = {name: buffer.clone() for name, buffer in cell.named_buffers()}
    want = gradients(cell, gates("all", PICKS[0]))
    got = gradients(cell, gates("named", PICKS[0]))
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, **EXACT)
    assert all(torch.equal(before[name], buffer) for name, buffer in cell.named_buffers())


class Wide(nn.Module):
    """A candidate that says how many outputs of its kind are alive at most."""

    alive = peak = 0

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.calls = 0

    def forward(self, x):
        y = x * self.scale
        self.calls += 1
        Wide.alive += 1
        Wide.peak = max(Wide.peak, Wide.alive)
        weakref.finalize(y, self.freed)
        return y

    @staticmethod
    def freed():
        Wide.alive -= 1


@pytest.mark.parametrize("recompute", [True, False])
def test_candidates_run_again_one_at_a_time(recompute):
    edge = MixedOp([Wide(k + 1.0) for k in range(6)])
    x = draw(4, 3).requires_grad_()
    Wide.alive = Wide.peak = 0
    weights = torch.zeros(1, 6, dtype=torch.float64).index_fill(1, torch.tensor([2]), 1.0)
    weights.requires_grad_()
    gate = GateOutput(weights, ((2,),), recompute=True) if recompute else GateOutput(weights)
    y = mix_edges([edge], [x], gate)
    assert [edge.candidate(k).calls for k in range(6)] == (
        [0, 0, 1, 0, 0, 0] if recompute else [1] * 6
    )
    (y * draw(4, 3, seed=2)).sum().backward()
    del y
    assert Wide.peak == (2 if recompute else 6)
    want = (x.detach() * draw(4, 3, seed=2)).sum() * torch.arange(1, 7)
    torch.testing.assert_close(weights.grad[0], want, **EXACT)


def test_the_value_is_that_of_what_ran_to_the_bit():
    edge = MixedOp([nn.Identity(), Wide(float("inf"))])
    x = torch.tensor([0.1, -0.0, 1e-45, 3.0])
    weights = torch.zeros(1, 2, requires_grad=True)
    y = mix_edges([edge], [x], GateOutput(weights, ((0,),), recompute=True))
    assert torch.equal(y.detach().view(torch.int32), x.view(torch.int32))
    y.sum().backward()
    assert weights.grad[0, 0] == x.sum() and not weights.grad[0, 1].isfinite()
    # Run with a weight of zero, what is not finite reaches the sum.
    assert mix_edges([edge], [x], GateOutput(torch.tensor([[1.0, 0.0]]))).isnan().any()


def test_without_a_gradient_nothing_runs_again():
    edge = MixedOp([Wide(1.0), Wide(2.0)])
    x = torch.ones(3, requires_grad=True)
    mix_edges([edge], [x], GateOutput(torch.zeros(1, 2), ((0,),), recompute=True)).sum().backward()
    assert [edge.candidate(k).calls for k in range(2)] == [1, 0]
    assert torch.equal(x.grad, torch.ones(3))


def test_it_runs_again_under_the_autocast_of_the_forward():
    edge = MixedOp([nn.Linear(4, 4), nn.Linear(4, 4)])
    weights, x = torch.zeros(1, 2, requires_grad=True), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = mix_edges([edge], [x], GateOutput(weights, ((0,),), recompute=True))
        want = [(edge.candidate(k)(x)).float().sum() for k in range(2)]
    assert y.dtype is torch.bfloat16
    y.float().sum().backward()
    torch.testing.assert_close(weights.grad[0], torch.stack(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["named", "selected"])
@pytest.mark.parametrize("make", [Noise, lambda: nn.Dropout(0.5)], ids=["noise", "dropout"])
def test_gradients_of_what_ran_belong_to_the_output_that_ran(make, kind, mode):
    """Of several edges of a node, where no output is there by itself."""
    edges = [MixedOp([nn.ReLU(), make(), make()]) for _ in range(3)]
    first = {}

    def keep(module, args, y):
        first.setdefault(module, y.detach())

    for edge in edges:
        for module in edge.candidates:
            module.register_forward_hook(keep)
    picks, x, slope = (1, 0, 2), draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=2)
    weights = nn.functional.one_hot(torch.tensor(picks), 3).double().requires_grad_()
    if kind == "named":
        gate = GateOutput(weights, tuple((pick,) for pick in picks), recompute=True)
    else:
        gate = GateOutput(weights, selected=weights.detach().bool(), recompute=True)
    torch.manual_seed(0)
    with _ext.use(mode):
        y = mix_edges(edges, [x] * 3, gate)
        (y * slope).sum().backward()
    ran = [first[edge.candidate(pick)] for edge, pick in zip(edges, picks, strict=True)]
    torch.testing.assert_close(y.detach(), sum(ran), **EXACT)
    for row, pick in enumerate(picks):
        torch.testing.assert_close(weights.grad[row, pick], (slope * ran[row]).sum(), **EXACT)
    assert weights.grad[:, 1:].flatten().unique().numel() == 6, "no two draw the same"


@pytest.mark.parametrize("kind", ["named", "selected"])
def test_gradients_of_one_that_draws_are_those_of_running_all(kind):
    edge, x = MixedOp([nn.ReLU(), nn.Dropout(0.5), nn.Tanh()]), draw(4, 3)
    found = []
    for gate in (
        GateOutput(torch.tensor([[0.0, 1.0, 0.0]]).double().requires_grad_()),
        GateOutput(torch.zeros(1, 3).double().requires_grad_(), ((1,),), recompute=True)
        if kind == "named"
        else GateOutput(
            torch.zeros(1, 3).double().requires_grad_(),
            selected=torch.tensor([[False, True, False]]),
            recompute=True,
        ),
    ):
        torch.manual_seed(0)
        y = mix_edges([edge], [x], gate)
        state = torch.get_rng_state()
        (y * draw(4, 3, seed=2)).sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
        found.append((y.detach(), gate.weights.grad))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, **EXACT)


def test_where_nothing_can_draw_nobody_looks_for_it(cell, monkeypatch):
    monkeypatch.setattr(recomputation, "random_states", None)
    assert gradients(cell, gates("named", PICKS[0]))[1].abs().sum() > 0
    edge = MixedOp([nn.ReLU(), nn.Dropout(0.5)])
    gate = GateOutput(torch.zeros(1, 2, requires_grad=True), ((0,),), recompute=True)
    with pytest.raises(TypeError):
        mix_edges([edge], [torch.ones(3)], gate)


def test_a_second_derivative_is_refused(cell):
    gate = gates("named", PICKS[0])
    y = cell(*(draw(3, channels, 6, 6).requires_grad_() for channels in (3, 5)), gate)
    (found,) = torch.autograd.grad(y.square().sum(), gate.weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recompute": True}, "recompute must go with active or selected"),
        (
            {"recompute": True, "active": ((0,),) * 2, "straight_through": True},
            "without straight_through",
        ),
        ({"recompute": True, "active": ((0, 1),) * 2}, "2 rows of 1 candidates with recompute"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        GateOutput(torch.ones(2, 3), **arguments)


def test_too_few_weights_are_refused():
    gate = GateOutput(torch.zeros(1, 2, requires_grad=True), ((0,),), recompute=True)
    with pytest.raises(ValueError, match="a column for each of 3 candidates, got 2"):
        mix_edges([MixedOp([nn.ReLU(), nn.Tanh(), nn.Sigmoid()])], [torch.ones(2)], gate)
