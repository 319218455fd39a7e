"""fused_cell: the numbers of its nodes one by one, without copies and with less kept."""

import pytest
import torch

from pyfast_nas import ops
from pyfast_nas.ops import Candidate, Node, Norm, Stage
from pyfast_nas.ops.node_plan import params_of
from pyfast_nas.testing import TOLERANCE
from tests.ops.node_cases import with_params

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

CHANNELS = 6
SETTINGS = ["plain", "affine", "given"]


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def conv(edge, c_in, setting, size=3):
    gamma, beta, mean, var = (draw(CHANNELS, seed=seed) for seed in range(10, 14))
    norm = Norm(
        *((gamma, beta) if setting == "affine" else (None, None)),
        *((mean, var.abs() + 0.5) if setting == "given" else (None, None)),
    )
    taps = 0.4 * draw(c_in, 1, size, size, seed=3) if size else None
    return Candidate("conv", edge, (Stage(taps, 0.4 * draw(CHANNELS, c_in, 1, 1, seed=4), norm),))


def make(setting="plain", parts=2, stride=1, again=(True, True, False, False, False)):
    """Return (inputs, nodes, parts): two inputs made as wide as the cell, then three nodes."""
    sizes = (8, 6) if stride == 2 else (4, 3)
    inputs = [draw(2, 5, *sizes, seed=1), draw(2, 7, *sizes, seed=2)]
    nodes = [
        Node((place,), (1,), [conv(0, x.shape[1], setting, 0)], draw(1, seed=5), again[place])
        for place, x in enumerate(inputs)
    ]
    for node in range(3):
        sources = tuple(range(2, 4 + node))
        strides = tuple(stride if source < 4 else 1 for source in sources)
        candidates = []
        for edge in range(len(sources)):
            candidates += [Candidate("max_pool", edge), conv(edge, CHANNELS, setting)]
            if strides[edge] == 1:
                candidates.append(Candidate("skip", edge))
        weights = draw(len(candidates), seed=20 + node)
        nodes.append(Node(sources, strides, candidates, weights, again[2 + node]))
    return inputs, nodes, parts


def with_tensors(inputs, nodes, change):
    """Return the cell with every tensor changed, and the changed ones."""
    inputs = [change(x) for x in inputs]
    leaves = list(inputs)
    changed = []
    for node in nodes:
        params = [change(p) for p in params_of(node.candidates)]
        weights = change(node.weights)
        leaves += [weights, *params]
        candidates = [_given_as(c, weights.dtype) for c in with_params(node.candidates, params)]
        changed.append(node._replace(candidates=candidates, weights=weights))
    return inputs, changed, leaves


def _given_as(candidate, dtype):
    def stage(s):
        given = {k: getattr(s.norm, k) for k in ("mean", "var")}
        given = {k: None if v is None else v.to(dtype) for k, v in given.items()}
        return s._replace(norm=s.norm._replace(**given))

    return candidate._replace(stages=tuple(map(stage, candidate.stages)))


def one_by_one(inputs, nodes, parts):
    states, statistics = list(inputs), []
    for node in nodes:
        xs = [states[source] for source in node.sources]
        y, of_norms = ops.fused_node(xs, node.weights, node.candidates, node.strides)
        states.append(y)
        statistics.append(of_norms)
    return torch.cat(states[-parts:], 1), statistics


def results(function, inputs, nodes, parts, dtype=torch.float64):
    inputs, nodes, leaves = with_tensors(
        inputs, nodes, lambda t: t.detach().to(dtype).requires_grad_()
    )
    y, statistics = function(inputs, nodes, parts)
    gradient = draw(*y.shape, seed=9).to(dtype)
    found = torch.autograd.grad(y, leaves, gradient, allow_unused=True, materialize_grads=True)
    return [y.detach(), *statistics, *found]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("again", [(False,) * 5, (True, True, False, False, False), (True,) * 5])
def test_equals_its_nodes_one_by_one(setting, parts, stride, again, backend):
    cell = make(setting, parts, stride, again)
    for got, want in zip(results(ops.fused_cell, *cell), results(one_by_one, *cell), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    assert got.shape == want.shape


def test_float32_is_as_right_as_its_nodes(kernels):
    cell = make("affine", 3)
    truth = results(one_by_one, *cell)
    for got, other, want in zip(
        results(ops.fused_cell, *cell, dtype=torch.float32),
        results(one_by_one, *cell, dtype=torch.float32),
        truth,
        strict=True,
    ):
        scale = want.abs().max().clamp_min(1e-3)
        error, allowed = ((t.double() - want).abs().max() / scale for t in (got, other))
        assert error <= 2 * allowed + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_cells_are_their_nodes(dtype, kernels):
    """The same sums; gradients of a state, which several nodes give, are added in another order."""
    inputs, nodes, parts = make("affine", 3)
    inputs, nodes, _ = with_tensors(inputs, nodes, lambda t: t.to(dtype).double())
    got, want = (
        results(f, inputs, nodes, parts, dtype=dtype) for f in (ops.fused_cell, one_by_one)
    )
    truth = results(one_by_one, inputs, nodes, parts)
    assert torch.equal(got[0], want[0])
    # Sums over the batch may cancel, and the roundings of their terms do not.
    batch = draw(*got[0].shape, seed=9).norm()
    for one, other, exact in zip(got, want, truth, strict=True):
        scale = exact.abs().max() if one.dim() == 4 else exact.abs().max().maximum(batch)
        error, allowed = ((t.double() - exact).abs().max() for t in (one, other))
        assert one.dtype == other.dtype and error <= 2 * allowed + TOLERANCE[dtype] * scale


@pytest.mark.promise("D1")
def test_same_bits_twice_and_for_any_number_of_threads(kernels):
    cell = make("plain", 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = results(ops.fused_cell, *cell, dtype=torch.float32)
        torch.set_num_threads(3)
        again = results(ops.fused_cell, *cell, dtype=torch.float32)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def kept_bytes(function, inputs, nodes, parts):
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    inputs, nodes, leaves = with_tensors(
        inputs,
        nodes,
        lambda t: (
            t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
        ).requires_grad_(),
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, statistics = function(inputs, nodes, parts)
    there = {t.untyped_storage().data_ptr() for t in (*leaves, y, *statistics)}
    return sum(s.nbytes() for at, s in kept.items() if at not in there)


def test_keeps_its_outcome_and_what_is_dear(kernels):
    """A state that is no part of the outcome is kept only if it is not to be computed again."""
    state = 2 * CHANNELS * 4 * 3 * 8
    assert kept_bytes(ops.fused_cell, *make(parts=3)) == 0
    assert kept_bytes(ops.fused_cell, *make(parts=1)) == 2 * state
    assert kept_bytes(ops.fused_cell, *make(parts=3, again=(False,) * 5)) == 2 * state
    assert kept_bytes(one_by_one, *make(parts=3)) == 4 * state


def test_without_a_graph(backend):
    cell = make("plain", 2)
    with torch.no_grad():
        got, want = ops.fused_cell(*cell), one_by_one(*cell)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("frozen", ["inputs", "weights", "parameters", "the first input"])
def test_only_what_is_asked_for(frozen, kernels):
    inputs, nodes, parts = make("affine", 2)
    inputs, nodes, leaves = with_tensors(inputs, nodes, lambda t: t.clone().requires_grad_())
    given_inputs, weights = set(map(id, inputs)), {id(node.weights) for node in nodes}
    for leaf in leaves:
        is_frozen = {
            "inputs": id(leaf) in given_inputs,
            "weights": id(leaf) in weights,
            "parameters": id(leaf) not in given_inputs | weights,
            "the first input": leaf is inputs[0],
        }[frozen]
        leaf.requires_grad_(not is_frozen)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    found, want = (
        torch.autograd.grad(f(inputs, nodes, parts)[0].square().sum(), wanted, allow_unused=True)
        for f in (ops.fused_cell, one_by_one)
    )
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_second_derivatives(backend):
    inputs, nodes, parts = make("affine", 2)
    inputs, nodes, leaves = with_tensors(inputs, nodes, lambda t: t.clone().requires_grad_())

    def curved(function):
        y, _ = function(inputs, nodes, parts)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for a, b in zip(curved(ops.fused_cell), curved(one_by_one), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * float(b.abs().max()))


def test_forward_mode_and_functorch(backend):
    inputs, nodes, parts = make("plain", 2)
    tangents = [torch.ones_like(x) for x in inputs]

    def run(function):
        return lambda *xs: function(xs, nodes, parts)[0]

    for transform in (
        lambda f: torch.func.jvp(f, tuple(inputs), tuple(tangents))[1],
        lambda f: torch.func.vjp(f, *inputs)[1](torch.ones(2, 2 * CHANNELS, 4, 3).double())[0],
        lambda f: torch.func.vmap(f)(*(torch.stack([x, x + 1]) for x in inputs)),
    ):
        torch.testing.assert_close(transform(run(ops.fused_cell)), transform(run(one_by_one)))


def test_batched_gradients(kernels):
    inputs, nodes, parts = make("plain", 2)
    x = inputs[0].requires_grad_()
    y, _ = ops.fused_cell(inputs, nodes, parts)
    gradients = torch.stack([draw(*y.shape, seed=seed) for seed in (1, 2)])
    (found,) = torch.autograd.grad(y, x, gradients, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in gradients]
    torch.testing.assert_close(found, torch.stack(want))


def test_a_change_of_the_outcome_in_place_is_refused(backend):
    """States are parts of the outcome: backward would read what was changed."""
    inputs, nodes, parts = make("plain", 2)
    inputs[0].requires_grad_()
    y, _ = ops.fused_cell(inputs, nodes, parts)
    y = torch.relu_(y)
    if backend == "compiled":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    else:
        y.sum().backward()


def test_one_tensor_as_both_inputs(backend):
    inputs, nodes, parts = make("plain", 2)
    nodes[1] = nodes[0]._replace(sources=(1,))
    leaf = inputs[0].requires_grad_()
    found, want = (
        torch.autograd.grad(f([leaf, leaf], nodes, parts)[0].square().sum(), leaf)[0]
        for f in (ops.fused_cell, one_by_one)
    )
    torch.testing.assert_close(found, want)


def test_a_node_that_nobody_reads(backend):
    """Its parameters get no gradient, or one of zeros; the others get theirs."""
    inputs, nodes, _ = make("affine", 1)
    unread = nodes[2]
    nodes = [*nodes[:2], unread, nodes[2]]
    inputs, nodes, leaves = with_tensors(inputs, nodes, lambda t: t.clone().requires_grad_())
    found, want = (
        torch.autograd.grad(
            f(inputs, nodes, 1)[0].square().sum(),
            leaves,
            allow_unused=True,
            materialize_grads=True,
        )
        for f in (ops.fused_cell, one_by_one)
    )
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("channels", [slice(0, 5), slice(3, 8), slice(15, 20)])
def test_inputs_may_be_channels_of_wider_tensors(channels, kernels):
    wide = draw(2, 32, 4, 3, seed=1).contiguous(memory_format=torch.channels_last)
    inputs, nodes, parts = make("plain", 2)
    results = []
    for x in (wide[:, channels], wide[:, channels].contiguous()):
        leaf = x.detach().requires_grad_()
        y, _ = ops.fused_cell([leaf, inputs[1]], nodes, parts)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaf)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_cannot_be_is_refused(backend):
    inputs, nodes, _ = make()
    with pytest.raises(ValueError, match=r"parts must be from 1 to 5, got 6"):
        ops.fused_cell(inputs, nodes, 6)
    with pytest.raises(ValueError, match="inputs must hold at least one"):
        ops.fused_cell([], nodes, 1)
    with pytest.raises(ValueError, match=r"nodes\[0\].sources must be from 0 to 1, got \(2,\)"):
        ops.fused_cell(inputs, [nodes[0]._replace(sources=(2,)), *nodes[1:]], 1)
    with pytest.raises(ValueError, match="shape"):
        ops.fused_cell(inputs, [nodes[0]._replace(weights=torch.ones(3).double())], 1)
    with pytest.raises((ValueError, RuntimeError), match="must"):
        ops.fused_cell(
            inputs,
            [
                *nodes[:2],
                nodes[2]._replace(
                    strides=(2, 2),
                    candidates=[Candidate("max_pool", 0)],
                    weights=torch.ones(1).double(),
                    sources=(2, 3),
                ),
                nodes[1],
            ],
            2,
        )
