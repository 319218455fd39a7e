"""A bias in front of a batch norm: it cancels out, and its derivatives are zero of every order."""

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas import ops
from pyfast_nas.ops import Candidate, Node, Norm, Stage

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

CHANNELS = 5


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def tensors(nodes=1):
    """Return the input, the weights and, for each node, matrix and bias."""
    params = [
        (draw(CHANNELS, CHANNELS, 3, 3, seed=2 + n), draw(CHANNELS, seed=9 + n))
        for n in range(nodes)
    ]
    return [draw(3, CHANNELS, 6, 4), draw(2, seed=1), *(p for pair in params for p in pair)]


def candidates(matrix, bias):
    return [Candidate("conv", 0, (Stage(None, matrix, Norm(), bias=bias),)), Candidate("skip", 0)]


def as_node(x, weights, matrix, bias):
    return ops.fused_node([x], weights, candidates(matrix, bias), [1])[0]


def as_cell(x, weights, *params):
    pairs = zip(params[::2], params[1::2], strict=True)
    nodes = [Node((i,), (1,), candidates(*pair), weights) for i, pair in enumerate(pairs)]
    return ops.fused_cell([x], nodes, 1)[0]


def plainly(x, weights, *params):
    for matrix, bias in zip(params[::2], params[1::2], strict=True):
        y = F.batch_norm(F.conv2d(x.relu(), matrix, bias, padding=1), None, None, training=True)
        x = weights[0] * y + weights[1] * x
    return x


@pytest.mark.parametrize(("function", "nodes"), [(as_node, 1), (as_cell, 1), (as_cell, 3)])
def test_values_and_derivatives_of_two_orders(function, nodes, backend):
    found = []
    for run in (function, plainly):
        leaves = tensors(nodes)
        y = run(*leaves)
        plain = torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([y.detach(), *plain, *first, *second])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("function", [as_node, as_cell])
def test_the_gradient_is_zero_and_not_missing(function, kernels):
    leaves = tensors()
    (gradient,) = torch.autograd.grad(function(*leaves).square().sum(), leaves[-1:])
    assert gradient.shape == (CHANNELS,) and not gradient.any()
    others = [leaf.detach() for leaf in leaves[:-1]]
    assert function(*others, leaves[-1]).requires_grad
    assert not function(*others, leaves[-1].detach()).requires_grad


@pytest.mark.promise("K18")
@pytest.mark.parametrize("create_graph", [False, True])
def test_in_a_node_whose_candidates_are_selected(create_graph, backend):
    """Selected or not, and on every route, the gradient is zero and not missing."""
    x, weights, matrix, bias = tensors()
    for flags in ([True, True], [False, True]):
        y, _ = ops.fused_node([x], weights, candidates(matrix, bias), [1], torch.tensor(flags))
        (found,) = torch.autograd.grad(y.square().sum(), [bias], create_graph=create_graph)
        assert found.abs().max() < 1e-12


@pytest.mark.parametrize("function", [as_node, as_cell])
def test_transforms(function, backend):
    leaves = [leaf.detach() for leaf in tensors()]
    tangents = [torch.ones_like(leaf) for leaf in leaves]
    batched = [torch.stack([leaf, leaf + 1]) for leaf in leaves]
    for transform in (
        lambda f: torch.func.jvp(f, tuple(leaves), tuple(tangents))[1],
        lambda f: torch.func.vmap(f)(*batched),
        lambda f: torch.func.jacrev(f, argnums=3)(*leaves),
    ):
        torch.testing.assert_close(transform(function), transform(plainly), rtol=1e-8, atol=1e-8)


@pytest.mark.promise("K17")
def test_compiles_as_one_graph(kernels):
    leaves = tensors()
    compiled = torch.compile(as_node, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*leaves), plainly(*leaves), rtol=1e-8, atol=1e-8)


def test_a_node_that_nobody_reads_moves_nothing(kernels):
    x, weights, *params = tensors(2)
    first, second = candidates(*params[:2]), candidates(*params[2:])
    nodes = [Node((0,), (1,), first, weights), Node((0,), (1,), second, weights)]
    y, _ = ops.fused_cell([x], nodes, 1)
    found = torch.autograd.grad(y.sum(), params, allow_unused=True)
    assert [gradient is None for gradient in found] == [True, True, False, False]


def test_statistics_are_those_without_it(backend):
    x, weights, matrix, bias = tensors()
    _, with_it = ops.fused_node([x], weights, candidates(matrix, bias), [1])
    _, without = ops.fused_node([x], weights, candidates(matrix, None), [1])
    torch.testing.assert_close(with_it, without)


def test_refusals():
    x, weights, matrix, bias = tensors()
    given = Norm(mean=torch.zeros_like(bias), var=torch.ones_like(bias))
    with pytest.raises(ValueError, match=r"bias of shape \[5\], got \[4\]"):
        as_node(x, weights, matrix, bias[:4])
    with pytest.raises(ValueError, match="no bias where statistics are given"):
        stage = Stage(None, matrix, given, bias=bias)
        ops.fused_node([x], weights[:1], [Candidate("conv", 0, (stage,))], [1])
    with pytest.raises(TypeError, match="bias must have dtype"):
        as_node(x, weights, matrix, bias.float())
