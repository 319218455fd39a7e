"""Cells: shapes, agreement with a loop over edges, and what runs under each kind of gate."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyfast_nas import _ext, ops
from pyfast_nas.errors import SearchSpaceError
from pyfast_nas.nn import Cell, GumbelTopK, Softmax
from pyfast_nas.nn.cell import edge_list
from pyfast_nas.nn.gates import GateOutput
from pyfast_nas.nn.primitives import Zero

NAMES = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}  # batch norms amplify the order of summation
SEED = torch.tensor([5, 0])


def cell(nodes=2, dtype=torch.float64, names=NAMES, **options):
    torch.manual_seed(0)
    options = {"previous_channels": (3, 5), "channels": 4} | options
    return Cell([names] * len(edge_list(nodes)), **options).to(dtype)


def batch(previous_reduction=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    side = 16 if previous_reduction else 8
    s0 = torch.randn(2, 3, side, side, generator=generator, dtype=dtype)
    return s0, torch.randn(2, 5, 8, 8, generator=generator, dtype=dtype)


def logits(nodes=2):
    generator = torch.Generator().manual_seed(2)
    shape = (len(edge_list(nodes)), len(NAMES))
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def naive(cell, s0, s1, weights, active=None):
    """The cell as the papers write it: one edge and one candidate at a time."""
    states = [cell.preprocess0(s0), cell.preprocess1(s1)]
    row = 0
    for node in range(cell.nodes):
        total = 0
        for source in range(node + 2):
            chosen = range(cell.edges[row].num_ops) if active is None else active[row]
            for column, candidate in enumerate(chosen):
                y = cell.edges[row].candidate(candidate)(states[source])
                total = total + weights[row, column] * y
            row += 1
        states.append(total)
    return torch.cat(states[-cell.multiplier :], dim=1)


def test_edge_index_formula():
    """e(i, j) = i (i + 3) / 2 + j for the edge from state j to node i."""
    edges = edge_list(4)
    assert len(edges) == 14
    for i in range(4):
        for j in range(i + 2):
            assert edges[i * (i + 3) // 2 + j] == (j, i + 2)


@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("previous_reduction", [False, True])
@pytest.mark.parametrize(("nodes", "multiplier"), [(1, None), (3, None), (4, 2)])
def test_output_shape(reduction, previous_reduction, nodes, multiplier):
    net = cell(
        nodes,
        reduction=reduction,
        previous_reduction=previous_reduction,
        multiplier=multiplier,
    )
    y = net(*batch(previous_reduction), Softmax()(logits(nodes)))
    side = 4 if reduction else 8
    assert y.shape == (2, 4 * (multiplier or nodes), side, side)


@pytest.mark.parametrize("reduction", [False, True])
def test_equals_a_loop_over_edges(reduction):
    net = cell(reduction=reduction)
    alphas = logits()
    weights = alphas.softmax(1)
    s0, s1 = batch()
    inputs = (alphas, *net.parameters())
    got = net(s0, s1, GateOutput(weights))
    want = naive(net, s0, s1, weights)
    torch.testing.assert_close(got, want, **FLOAT64)
    factor = torch.randn_like(want)
    torch.testing.assert_close(
        torch.autograd.grad((got * factor).sum(), inputs, retain_graph=True),
        torch.autograd.grad((want * factor).sum(), inputs, retain_graph=True),
        **FLOAT64,
    )
    with torch.no_grad():
        torch.testing.assert_close(net(s0, s1, GateOutput(weights)), want, **FLOAT64)


def test_sampled_gate_equals_a_loop():
    net = cell()
    alphas = logits()
    gate = GumbelTopK(2)(alphas, SEED)
    s0, s1 = batch()
    got, want = net(s0, s1, gate), naive(net, s0, s1, gate.weights, gate.active)
    torch.testing.assert_close(got, want, **FLOAT64)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), alphas, retain_graph=True),
        torch.autograd.grad(want.sum(), alphas),
        **FLOAT64,
    )


def test_one_sum_per_node(monkeypatch):
    sums = []

    def counted(xs, weights):
        sums.append(len(xs))
        return mixed_sum(xs, weights)

    mixed_sum = ops.mixed_sum
    monkeypatch.setattr(ops, "mixed_sum", counted)
    net = cell(nodes=3)
    running = len(NAMES) - 1  # all but `none`
    with _ext.use("reference"):
        net(*batch(), Softmax()(logits(3)))
        assert sums == [2 * running, 3 * running, 4 * running]
        with torch.no_grad():
            net(*batch(), Softmax()(logits(3)))
    assert len(sums) == 3


@pytest.mark.parametrize("grad", [True, False])
def test_one_fused_node_per_node(grad, fused_nodes):
    """Two preprocessing layers, then every edge into a node at once."""
    net = cell(nodes=3)
    with torch.set_grad_enabled(grad):
        net(*batch(), Softmax()(logits(3)))
    running = len(NAMES) - 1
    assert fused_nodes == [1, 1, 2 * running, 3 * running, 4 * running]


def test_a_reduction_runs_in_the_node_too(fused_nodes):
    """On odd sides the plain module runs, which says what is wrong."""
    net = cell(reduction=True)
    s0, s1 = batch()
    net(s0, s1, Softmax()(logits()))
    assert fused_nodes == [1, 1, 6, 9]
    with pytest.raises(SearchSpaceError, match="sides of the image must be even"):
        net(s0[..., :-1], s1[..., :-1], Softmax()(logits()))


def count_runs(net):
    runs = {}
    for row, edge in enumerate(net.edges):
        for index in range(edge.num_ops):
            runs[row, index] = 0

            def hook(*_, key=(row, index)):
                runs[key] += 1

            edge.candidate(index).register_forward_hook(hook)
    return runs


def test_single_path_runs_one_candidate_per_row():
    net = cell(nodes=3)
    (gate,) = GumbelTopK(1)(logits(3), SEED).split()
    runs = count_runs(net)
    y = net(*batch(), gate)
    drawn = {(row, chosen[0]) for row, chosen in enumerate(gate.active)}
    ran = {key for key, count in runs.items() if count}
    assert max(runs.values()) == 1
    assert ran == {(row, k) for row, k in drawn if not net.edges[row].is_zero[k]}
    y.sum().backward()
    for row, edge in enumerate(net.edges):
        for index in range(edge.num_ops):
            for parameter in edge.candidate(index).parameters():
                assert (parameter.grad is not None) == ((row, index) in ran)


def test_single_path_forward_is_the_bare_candidates():
    net = cell()
    (gate,) = GumbelTopK(1)(logits(), SEED).split()
    s0, s1 = batch()
    bare = naive(net, s0, s1, torch.ones(5, 1, dtype=torch.float64), gate.active)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(net(s0, s1, gate), bare, **FLOAT64)
            with _ext.use("reference"):
                assert torch.equal(net(s0, s1, gate), bare)


def test_single_path_weights_do_not_touch_the_value():
    """Also where the weight is no power of two: a factor of exactly one, to the bit."""
    net = cell()
    s0, s1 = batch()
    outputs = []
    for value in (0.3, 0.7):
        weights = torch.full((5, 1), value, dtype=torch.float64, requires_grad=True)
        gate = GateOutput(weights, ((1,), (2,), (3,), (1,), (2,)), straight_through=True)
        outputs.append(net(s0, s1, gate))
    assert torch.equal(*outputs)
    (grad,) = torch.autograd.grad(outputs[0].square().sum(), weights, allow_unused=True)
    assert grad is None  # the second table's weights made the second output only


def test_gate_gradient_is_the_effect_of_scaling_the_output():
    """c = d loss / d eps with the executed output scaled by 1 + eps; zero for `none`."""
    net = cell()
    (gate,) = GumbelTopK(1)(logits(), SEED).split()
    weights = gate.weights.detach().requires_grad_()
    s0, s1 = batch()
    loss = net(s0, s1, GateOutput(weights, gate.active, True)).pow(2).sum()
    (got,) = torch.autograd.grad(loss, weights)
    eps = torch.zeros(5, 1, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(naive(net, s0, s1, 1 + eps, gate.active).pow(2).sum(), eps)
    torch.testing.assert_close(got, want, **FLOAT64)
    assert got.any()


def test_a_node_without_inputs_is_zero():
    net = cell()
    none = tuple((NAMES.index("none"),) for _ in range(5))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y = net(*batch(), GateOutput(torch.ones(5, 1), none, straight_through=True))
        assert y.shape == (2, 8, 8, 8) and not y.any()


def test_too_few_columns_are_refused():
    with pytest.raises(ValueError, match="column for each of 4 candidates, got 3"):
        cell()(*batch(), GateOutput(torch.ones(5, 3)))


class LiveBytes(TorchDispatchMode):
    """Follow the bytes of all storages made inside, and their peak."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.follow(tensor.untyped_storage())
        return result

    def follow(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.known.discard(key)
        self.alive -= size


def peak_bytes(names, grad=False):
    net = cell(nodes=2, dtype=torch.float32, names=names)
    # Large enough that the bytes of the weights do not count.
    s0, s1, gate = torch.randn(2, 3, 32, 32), torch.randn(2, 5, 32, 32), torch.ones(5, len(names))
    with LiveBytes() as live, torch.set_grad_enabled(grad):
        net(s0, s1, GateOutput(gate))
    return live.peak


def most_alive(names):
    net = cell(nodes=2, dtype=torch.float32, names=names)
    alive = []
    most = 0

    def hook(module, inputs, output):
        nonlocal most
        if output is not inputs[0]:  # a skip makes nothing
            alive.append(weakref.ref(output))
        most = max(most, sum(ref() is not None for ref in alive))

    for edge in net.edges:
        for index in range(edge.num_ops):
            if not isinstance(edge.candidate(index), Zero):
                edge.candidate(index).register_forward_hook(hook)
    with torch.no_grad():
        net(*batch(dtype=torch.float32), GateOutput(torch.ones(5, len(names))))
    assert len(alive) == 5 * len(set(names) - {"skip_connect"})
    return most


def test_streaming_memory_does_not_grow_with_the_candidates():
    two = ("max_pool_3x3", "sep_conv_3x3")
    eight = (*two, "avg_pool_3x3", "skip_connect", "sep_conv_5x5", "sep_conv_7x7")
    eight = (*eight, "dil_conv_3x3", "dil_conv_5x5")
    assert most_alive(two) == most_alive(eight) == 1
    assert peak_bytes(eight) <= 1.02 * peak_bytes(two)
    # Negative control: with gradients plain modules do grow, and the count sees it.
    with _ext.use("reference"):
        assert peak_bytes(eight, grad=True) > 2 * peak_bytes(two, grad=True)


def kept_bytes(names):
    """Bytes of activations that the graph of one pass holds on to."""
    net = cell(nodes=2, dtype=torch.float32, names=names)
    s0, s1, gate = torch.randn(2, 3, 32, 32), torch.randn(2, 5, 32, 32), torch.ones(5, len(names))
    known = {p.data_ptr() for p in (*net.parameters(), s0, s1)}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = net(s0, s1, GateOutput(gate))
    assert y.requires_grad
    return sum(kept.values())


def test_fused_candidates_keep_the_inputs_only(fused_nodes):
    """Four states of a cell of width four, whatever runs between them."""
    if set(_ext.kernels_in_use().values()) != {"compiled"}:
        pytest.skip("no compiled kernels for the CPU in this installation")
    names = ("max_pool_3x3", "sep_conv_3x3", "avg_pool_3x3", "skip_connect", "dil_conv_5x5")
    state = 2 * 4 * 32 * 32 * 4
    statistics = 2 * 4 * 8 * 100
    # The channels-last copies of the two inputs, the outcome, of which the states that are read are
    # parts, statistics.
    assert kept_bytes(names) <= (3 + 5) * 2 * 32 * 32 * 4 + 4 * state + statistics
    assert fused_nodes
    with _ext.use("reference"):
        assert kept_bytes(names) > 20 * state
