"""fused_node: derivatives of every order and mode, transforms, registration, compilation."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap
from torch.library import opcheck

from pyfast_nas import ops
from pyfast_nas.ops import reference_edges
from pyfast_nas.ops.node_plan import Plan, params_of
from tests.ops.node_cases import DIL3, FULL, REDUCE, SEP3, NodeCase, with_gradients, with_params

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

# Smooth at the points that are checked: no two values of a window are close to each other.
SMALL = NodeCase((2, 2, 4, 4), (1,), "a", (SEP3, DIL3))
STRIDED = NodeCase((2, 2, 4, 4), (2,), "", (DIL3, REDUCE))
GIVEN = NodeCase((2, 2, 4, 4), (1,), "ag", (SEP3,))
CONVOLVED = NodeCase((2, 2, 4, 4), (1,), "a", (FULL[0], FULL[2]))
CASES = [SMALL, STRIDED, GIVEN, CONVOLVED]


def problem(case, function=ops.fused_node):
    """Return a function of flat tensors, and the tensors."""
    xs, weights, candidates, _ = case.make(torch.float64)
    params = list(params_of(candidates))
    edges = len(xs)

    def call(weights, *tensors):
        xs, params = tensors[:edges], tensors[edges:]
        return function(xs, weights, with_params(candidates, params), case.strides)[0]

    return call, [t.requires_grad_() for t in (weights, *xs, *params)]


@pytest.mark.promise("K3")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_first_derivatives(case, kernels):
    call, tensors = problem(case)
    assert gradcheck(call, tensors, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.promise("K4")
@pytest.mark.parametrize("non_contiguous", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_second_derivatives(case, non_contiguous, kernels):
    call, tensors = problem(case)
    assert gradgradcheck(call, tensors, gen_non_contig_grad_outputs=non_contiguous, fast_mode=True)


@pytest.mark.promise("K4")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_mixed_derivative_equals_that_of_plain_operations(case, kernels):
    """d2 L / d weights d parameters times a vector: what a second-order search takes."""
    products = []
    for function in (ops.fused_node, reference_edges.fused_node):
        call, (weights, *tensors) = problem(case, function)
        loss = call(weights, *tensors).square().sum()
        first = torch.autograd.grad(loss, tensors, create_graph=True)
        vector = [torch.cos(torch.arange(t.numel(), dtype=t.dtype)).view_as(t) for t in tensors]
        inner = sum((f * v).sum() for f, v in zip(first, vector, strict=True))
        products.append(torch.autograd.grad(inner, weights)[0])
    torch.testing.assert_close(*products, rtol=1e-10, atol=1e-10)


def test_an_input_computed_from_another(kernels):
    """Second derivatives see each input's own path only once."""
    results = []
    for function in (ops.fused_node, reference_edges.fused_node):
        xs, weights, candidates, _ = NodeCase((2, 2, 4, 4), (1, 1), "", (DIL3,)).make(torch.float64)
        x = xs[0].requires_grad_()
        y, _ = function([x, torch.sin(x)], weights, candidates, (1, 1))
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append((first, torch.autograd.grad(first.square().sum(), x)[0]))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.promise("K18")
@pytest.mark.parametrize("case", [SMALL, STRIDED], ids=str)
def test_function_transforms(case, kernels):
    results = []
    for function in (ops.fused_node, reference_edges.fused_node):
        call, tensors = problem(case, function)
        weights, x, *rest = (t.detach() for t in tensors)

        def loss(weights, x, call=call, rest=rest):
            return call(weights, x, *rest).square().mean()

        tangent = torch.ones_like(x)
        results.append(
            [
                grad(loss)(weights, x),
                hessian(loss)(weights, x),
                jvp(lambda x, loss=loss, w=weights: loss(w, x), (x,), (tangent,))[1],
                jvp(lambda x, loss=loss, w=weights: grad(loss)(w, x), (x,), (tangent,))[1],
                vjp(loss, weights, x)[1](torch.tensor(1.0, dtype=x.dtype))[1],
                vmap(loss, (None, 0))(weights, torch.stack([x, 2 * x, -x])),
            ]
        )
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_functional_call_of_a_module(kernels):
    """A module's parameters may be replaced for one call."""

    class Node(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = torch.nn.Parameter(torch.randn(3, 3, 1, 1))

        def forward(self, x):
            stage = ops.Stage(None, self.matrix, ops.Norm())
            candidate = ops.Candidate("conv", 0, (stage,))
            return ops.fused_node([x], torch.ones(1), [candidate], (1,))[0].square().mean()

    node, x = Node(), torch.randn(2, 3, 4, 4)
    other = {"matrix": torch.randn(3, 3, 1, 1)}
    direct = grad(lambda p: functional_call(node, p, (x,)))(other)["matrix"]
    node.matrix.data.copy_(other["matrix"])
    torch.testing.assert_close(direct, torch.autograd.grad(node(x), node.matrix)[0])


@pytest.mark.promise("K5")
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_registration(case, requires_grad, backend):
    xs, weights, candidates, gradient = case.make(torch.float32)
    last = torch.channels_last
    xs = [x.contiguous(memory_format=last).requires_grad_(requires_grad) for x in xs]
    params = [t.requires_grad_(requires_grad) for t in params_of(candidates)]
    given = None
    if case is GIVEN:
        norms = [norm for candidate in candidates for norm in candidate.norms()]
        given = torch.stack([torch.stack([n.mean, n.var]) for n in norms]).double()
    plan = Plan.of(candidates, case.strides).arguments()
    forward = torch.ops.pyfast_nas.fused_node.default
    opcheck(forward, (xs, weights, params, given, *plan))
    _, statistics = forward(xs, weights, params, given, *plan)
    plain = [t.detach() for t in (*xs, *params)]
    backward = (
        gradient.contiguous(memory_format=last),
        plain[: len(xs)],
        weights,
        plain[len(xs) :],
        statistics.detach(),
        *plan,
        list(range(len(xs))),
        True,
        list(range(len(params))),
    )
    opcheck(torch.ops.pyfast_nas.fused_node_backward.default, backward)
    if requires_grad:
        return
    place = torch.empty_like(gradient, memory_format=last)
    opcheck(
        torch.ops.pyfast_nas.fused_node_into.default, (place, xs, weights, params, given, *plan)
    )
    places = [torch.zeros_like(x) for x in xs]
    opcheck(
        torch.ops.pyfast_nas.fused_node_backward_into.default,
        (places, [1] * len(xs), *backward),
        # No compiled graph holds it, and none could: torch does not trace what writes to a list.
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_operators_by_plain_operations(case):
    """What serves where nothing is compiled, called as a kernel is: below autograd."""
    xs, weights, candidates, gradient = case.make(torch.float64)
    params = list(params_of(candidates))
    norms = [norm for candidate in candidates for norm in candidate.norms()]
    given = None
    if case is GIVEN:
        given = torch.stack([torch.stack([n.mean, n.var]) for n in norms])
    plan = Plan.of(candidates, case.strides).arguments()
    with torch._C._AutoDispatchBelowAutograd():
        y, statistics = reference_edges.planned_node(xs, weights, params, given, *plan)
        found = reference_edges.planned_node_backward(
            *(gradient, xs, weights, params, statistics, *plan, [0], True, range(len(params)))
        )
    want = with_gradients(
        reference_edges.fused_node, xs, weights, candidates, gradient, case.strides
    )
    for got, other in zip((y, statistics, found[1], *found[0], *found[2]), want, strict=True):
        torch.testing.assert_close(got, other)


@pytest.mark.promise("K6")
def test_the_backward_operator_refuses_to_be_differentiated(kernels):
    xs, weights, candidates, gradient = SMALL.make(torch.float32)
    xs = [x.contiguous(memory_format=torch.channels_last) for x in xs]
    gradient = gradient.contiguous(memory_format=torch.channels_last).requires_grad_()
    params = list(params_of(candidates))
    plan = Plan.of(candidates, SMALL.strides).arguments()
    _, statistics = torch.ops.pyfast_nas.fused_node(xs, weights, params, None, *plan)
    found, _, _ = torch.ops.pyfast_nas.fused_node_backward(
        gradient, xs, weights, params, statistics, *plan, [0], False, []
    )
    with pytest.raises(RuntimeError, match="create_graph=True"):
        found[0].sum().backward()


@pytest.mark.promise("K17")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiles_as_one_graph(case, kernels):
    _, tensors = problem(case)
    tensors = [t.detach().float().requires_grad_() for t in tensors]
    xs, _, candidates, _ = case.make(torch.float32)

    def single(weights, *tensors):
        xs_, params = tensors[: len(xs)], tensors[len(xs) :]
        return ops.fused_node(xs_, weights, with_params(candidates, params), case.strides)[0]

    compiled = torch.compile(single, backend="aot_eager", fullgraph=True)
    got, want = compiled(*tensors), single(*tensors)
    assert torch.equal(got, want)
    cotangent = torch.ones_like(want)
    for one, other in zip(
        torch.autograd.grad(got, tensors, cotangent),
        torch.autograd.grad(want, tensors, cotangent),
        strict=True,
    ):
        assert torch.equal(one, other)
