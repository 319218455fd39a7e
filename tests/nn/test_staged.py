"""Networks of three stages: the cell against a loop over its modules, the derived network."""

import copy

import pytest
import torch
from torch import nn

from pyfast_nas import _ext
from pyfast_nas.nn import GumbelTopK, Softmax
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.staged import STAGE_PRIMITIVES, Residual, StageCell, StagedSupernet
from pyfast_nas.nn.staged_network import DerivedStageCell, StagedNetwork

NAMES = tuple(STAGE_PRIMITIVES)
CHANNELS = 4
FLOAT64 = {"rtol": 1e-9, "atol": 1e-9}


def cell(track=False):
    torch.manual_seed(0)
    net = StageCell([NAMES] * 6, channels=CHANNELS, track_running_stats=track).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def loop(net, x, weights, active=None):
    states, row = [x], 0
    for node in (1, 2, 3):
        total = torch.zeros_like(x)
        for source in range(node):
            edge = net.edges[row]
            chosen = range(len(NAMES)) if active is None else active[row]
            for column, candidate in enumerate(chosen):
                y = edge.candidate(candidate)(states[source])
                total = total + weights[row, column] * y
            row += 1
        states.append(total)
    return states[-1]


@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_equals_a_loop_over_its_modules(track, training):
    """Values, gradients and second derivatives, biases among them, and running statistics."""
    net = cell(track).train(training)
    twin = copy.deepcopy(net)
    found = []
    for module, run in ((net, lambda x, w: net(x, GateOutput(w))), (twin, None)):
        x, weights = draw(3, CHANNELS, 6, 6), draw(6, 5, seed=1)
        y = run(x, weights) if run else loop(twin, x, weights)
        leaves = [x, weights, *module.parameters()]
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([[y.detach()], [g.detach() for g in first], second, list(module.buffers())])
    for gots, wants in zip(*found, strict=True):
        # Derivatives by biases vanish but for the rounding of terms as large as the others.
        scale = max([1.0, *(float(want.abs().max()) for want in wants)])
        for got, want in zip(gots, wants, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10 * scale)


@pytest.mark.parametrize("columns", [1, 2])
def test_sampled_gates(columns):
    net, x, logits = cell(), draw(3, CHANNELS, 6, 6), draw(6, 5, seed=1)
    gate = GumbelTopK(columns)(logits, torch.tensor([5, 0]))
    results = []
    for y in (net(x, gate), loop(net, x, gate.weights, gate.active)):
        gradients = torch.autograd.grad(y.sum(), [x, logits], retain_graph=True)
        results.append([y.detach(), *gradients])
    torch.testing.assert_close(*results, **FLOAT64)


def test_the_whole_cell_is_one_operator(fused_nodes):
    """All candidates of all edges into a node at once; it runs again without a new assembly."""
    net, x = cell(), draw(3, CHANNELS, 6, 6)
    gate = Softmax()(draw(6, 5, seed=1))
    for _ in range(2):
        y = net(x, gate)
    assert fused_nodes == [4, 8, 12] * 2  # all but `none`
    with _ext.use("reference"):
        torch.testing.assert_close(y, net(x, gate), **FLOAT64)


def test_a_cell_of_nothing_gives_zeros():
    gate = GateOutput(torch.ones(6, 1).double(), ((0,),) * 6, straight_through=True)
    assert not cell()(draw(3, CHANNELS, 6, 6), gate).any()


def test_biases_stand_in_for_the_shift_of_norms():
    convolutions = [m for m in cell().modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in cell().modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 12
    assert all(conv.bias is not None for conv in convolutions)
    assert not any(norm.affine for norm in norms)
    derived = DerivedStageCell([(0, 1, "nor_conv_3x3")], 1, channels=CHANNELS)
    assert derived.ops[0][1].bias is None and derived.ops[0][2].affine


def test_gradients_reach_everything():
    net = StagedSupernet({"cell": [NAMES] * 6}, channels=2, cells=1, num_classes=3)
    net(torch.randn(3, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert not {*net.arch_parameters()} & {*net.weight_parameters()}


def test_shapes_along_the_depth():
    net = StagedSupernet({"cell": [NAMES] * 6}, channels=2, cells=2, num_classes=3, in_channels=1)
    shapes = []
    for layer in net.layers:
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape[1:]))
    assert net(torch.randn(3, 1, 8, 12)).shape == (3, 3)
    stages = [(2, 8, 12)] * 2 + [(4, 4, 6)] * 3 + [(8, 2, 3)] * 3
    assert [tuple(shape) for shape in shapes] == stages
    assert [isinstance(layer, Residual) for layer in net.layers] == [
        *(False, False, True),
        *(False, False, True),
        *(False, False),
    ]


def test_the_residual_block():
    block = Residual(2).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.side[1].weight[:, 0] = 1.0
    x = torch.randn(1, 2, 4, 4)
    want = nn.functional.avg_pool2d(x[:, :1], 2).expand(1, 4, 2, 2)
    torch.testing.assert_close(block(x), want)


def test_a_state_without_operations_is_zero():
    """Behind it a convolution sees zeros, and gives the shift of its norm."""
    edges = [(0, 1, "none"), (0, 2, "none"), (1, 2, "nor_conv_1x1")]
    derived = DerivedStageCell(edges, 2, channels=3)
    with torch.no_grad():
        derived.ops[0][2].bias.fill_(0.5)
    assert len(derived.ops) == 1
    assert torch.equal(derived(torch.randn(2, 3, 4, 4)), torch.full((2, 3, 4, 4), 0.5))
    nothing = DerivedStageCell([(0, 1, "none")], 1, channels=3)
    assert not nothing(torch.randn(2, 3, 4, 4)).any()


def test_layers_are_plain_and_names_are_stable():
    edges = [(0, 1, "nor_conv_3x3"), (0, 2, "skip_connect"), (1, 2, "avg_pool_3x3")]
    net = StagedNetwork(edges, (2,), channels=2, cells=1, num_classes=3)
    assert [type(op) for op in net.layers[0].ops][1:] == [nn.Identity, nn.AvgPool2d]
    names = list(net.state_dict())
    assert names[:2] == ["stem.0.weight", "stem.1.weight"]
    assert "layers.0.ops.0.1.weight" in names and "layers.1.main.0.1.weight" in names
    assert "layers.1.side.1.weight" in names and "head.0.weight" in names
    assert names[-2:] == ["classifier.weight", "classifier.bias"]
