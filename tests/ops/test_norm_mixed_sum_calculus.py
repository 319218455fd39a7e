"""norm_mixed_sum: derivatives of every order and mode, transforms, registration, compilation."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.library import opcheck
from torch.utils._pytree import tree_leaves

from pyfast_nas import ops
from pyfast_nas.ops import Norm, _library, reference_norm
from tests.ops.norm_cases import Case, eager, params_of

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")

KINDS = ("affine", "plain", "none", "given_affine")
SHAPE = (3, 2, 2, 2)
PLAN = ([2, 1, 0, 6], [1e-5] * 3)


def make(shape=SHAPE, dtype=torch.float64, requires_grad=True, last=False):
    """Return weights, four candidates, gammas and betas, and the norms they belong to."""
    case = Case(shape, 4, (dtype, dtype), kinds=KINDS)
    if last:
        case.xs = [x.movedim(1, -1).contiguous().movedim(-1, 1) for x in case.xs]
    return [t.requires_grad_(requires_grad) for t in case.leaves()], case.norms


def with_params(norms, params):
    left = iter(params)
    return [
        norm._replace(gamma=next(left), beta=next(left))
        if norm and norm.gamma is not None
        else norm
        for norm in norms
    ]


def sum_of(function, norms):
    """Return the sum as a function of its tensors alone."""

    def call(weights, *tensors):
        return function(tensors[:4], weights, with_params(norms, tensors[4:]))[0]

    return call


def opaque(norms):
    given = list(norms[3][2:4])

    def call(weights, *tensors):
        operator = torch.ops.pyfast_nas.norm_mixed_sum
        return operator(tensors[:4], weights, tensors[4:], given, *PLAN)[0]

    return call


@pytest.mark.promise("K3")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(4, 3), SHAPE, (2, 2, 17)], ids=str)
def test_first_derivatives(shape, last, backend):
    inputs, norms = make(shape, last=last)
    call = sum_of(ops.norm_mixed_sum, norms)
    # The numbers come through the kernel, batched and forward ones through plain operations.
    assert gradcheck(call, inputs, check_undefined_grad=True)
    assert gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)


@pytest.mark.promise("K4")
@pytest.mark.parametrize("non_contiguous", [False, True])
def test_second_derivatives(non_contiguous, backend):
    inputs, norms = make((3, 2, 2))
    assert gradgradcheck(
        sum_of(ops.norm_mixed_sum, norms),
        inputs,
        gen_non_contig_grad_outputs=non_contiguous,
        check_batched_grad=True,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        fast_mode=True,
    )


@pytest.mark.promise("K4", "K7")
@pytest.mark.parametrize("fixed", [(0,), (1,), (0, 1), (1, 2, 3, 4), (5, 6), (0, 5, 8)], ids=str)
def test_derivatives_of_subsets(fixed, backend):
    inputs, norms = make((3, 2, 2))
    constants = {index: inputs[index].detach() for index in fixed}
    free = [t for index, t in enumerate(inputs) if index not in fixed]
    call = sum_of(ops.norm_mixed_sum, norms)

    def partly(*tensors):
        rest = iter(tensors)
        return call(*[constants[i] if i in constants else next(rest) for i in range(len(inputs))])

    assert gradcheck(partly, free, check_forward_ad=True)
    assert gradgradcheck(partly, free, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.promise("K4")
def test_third_derivatives(backend):
    inputs, norms = make((3, 2))
    call = sum_of(ops.norm_mixed_sum, norms)

    def twice(*tensors):
        return torch.autograd.grad(call(*tensors).tanh().sum(), tensors, create_graph=True)

    assert gradgradcheck(twice, inputs, fast_mode=True)


@pytest.mark.promise("K4")
def test_opaque_operators_differentiate_twice(kernels):
    inputs, norms = make((3, 2, 2))
    assert gradcheck(opaque(norms), inputs)
    assert gradgradcheck(opaque(norms), inputs)


@pytest.mark.promise("K4")
def test_one_input_computed_from_another(kernels):
    results = []
    for function in (ops.norm_mixed_sum, eager):
        (weights, x, *_), norms = make()
        xs = [x, x.tanh(), x * weights[0], x.square()]
        y, _ = function(xs, weights, norms)
        first = torch.autograd.grad(y.sin().sum(), [weights, x, xs[1]], create_graph=True)
        dot = sum(g.square().sum() for g in first)
        results.append([*first, *torch.autograd.grad(dot, [weights, x])])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.promise("K4", "K18")
def test_mixed_derivative_against_torch(kernels):
    results = []
    for function in (ops.norm_mixed_sum, eager):
        inputs, norms = make()
        loss = sum_of(function, norms)(*inputs).tanh().square().sum()
        first = torch.autograd.grad(loss, inputs[0], create_graph=True)[0]
        results.append(torch.autograd.grad((first * torch.arange(1.0, 5)).sum(), inputs[1:]))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def loss_of(norms):
    call = sum_of(ops.norm_mixed_sum, norms)
    return lambda *tensors: call(*tensors).tanh().square().sum()


@pytest.mark.promise("K18")
@pytest.mark.parametrize(
    "outer, inner", [(jacrev, jacrev), (jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)]
)
@pytest.mark.parametrize("argnums", [0, 1, 5])
def test_hessians_four_ways(outer, inner, argnums, kernels):
    inputs, norms = make((3, 2, 2), requires_grad=False)
    got = outer(inner(loss_of(norms), argnums=argnums), argnums=argnums)(*inputs)

    def by_torch(weights, *tensors):
        y, _ = eager(tensors[:4], weights, with_params(norms, tensors[4:]))
        return y.tanh().square().sum()

    # Reverse over reverse: torch's own batch norm is wrong in other orders.
    want = jacrev(jacrev(by_torch, argnums=argnums), argnums=argnums)(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.promise("K18")
def test_hessian_vector_products_both_ways(kernels):
    inputs, norms = make(requires_grad=False)
    loss, vectors = loss_of(norms), [torch.full_like(t, 0.5) for t in inputs]
    gradient = grad(loss, argnums=tuple(range(len(inputs))))
    over_reverse = jvp(gradient, tuple(inputs), tuple(vectors))[1]
    leaves = [t.clone().requires_grad_() for t in inputs]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    dot = sum((a * b).sum() for a, b in zip(first, vectors, strict=True))
    reverse_over_reverse = torch.autograd.grad(dot, leaves)
    torch.testing.assert_close(over_reverse, reverse_over_reverse, rtol=1e-10, atol=1e-10)


@pytest.mark.promise("K18")
def test_forward_mode_tangents_are_not_lost(kernels):
    inputs, norms = make(requires_grad=False)
    call = sum_of(ops.norm_mixed_sum, norms)
    for index in range(len(inputs)):
        vector = torch.ones_like(inputs[index])
        with torch.autograd.forward_ad.dual_level():
            duals = list(inputs)
            duals[index] = torch.autograd.forward_ad.make_dual(inputs[index], vector)
            tangent = torch.autograd.forward_ad.unpack_dual(call(*duals)).tangent
        step = 1e-6 * vector
        moved = [t + step if k == index else t for k, t in enumerate(inputs)]
        back = [t - step if k == index else t for k, t in enumerate(inputs)]
        difference = (call(*moved) - call(*back)) / 2e-6
        torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-6)


@pytest.mark.promise("K18")
@pytest.mark.parametrize("batched", [(0,), (1,), (0, 2, 5), tuple(range(9))], ids=str)
def test_vmap_equals_a_loop(batched, backend):
    inputs, norms = make((3, 2, 2), requires_grad=False)
    generator = torch.Generator().manual_seed(1)
    dims = [-1 if index in batched else None for index in range(len(inputs))]
    stacked = [
        torch.randn((*t.shape, 5), generator=generator, dtype=t.dtype) if dim == -1 else t
        for t, dim in zip(inputs, dims, strict=True)
    ]
    call, loss = sum_of(ops.norm_mixed_sum, norms), loss_of(norms)
    gradients = grad(loss, argnums=tuple(range(len(inputs))))
    for function in (call, gradients, lambda *t: jvp(loss, t, t)):
        got = vmap(function, in_dims=tuple(dims))(*stacked)
        single = [
            function(*[t[..., b] if d == -1 else t for t, d in zip(stacked, dims, strict=True)])
            for b in range(5)
        ]
        want = [torch.stack(leaves) for leaves in zip(*map(tree_leaves, single), strict=True)]
        torch.testing.assert_close(tree_leaves(got), want, rtol=1e-12, atol=1e-12)


def test_batched_gradients_are_those_of_a_loop(backend):
    inputs, norms = make((3, 2, 2))
    y = sum_of(ops.norm_mixed_sum, norms)(*inputs)
    cotangents = torch.randn((4, *y.shape), dtype=y.dtype)
    got = torch.autograd.grad(y, inputs, cotangents, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, inputs, c, retain_graph=True) for c in cotangents]
    want = [torch.stack(leaves) for leaves in zip(*single, strict=True)]
    torch.testing.assert_close(list(got), want)


OPERANDS = [
    (SHAPE, torch.float64, True, False),
    ((3, 2, 2), torch.float32, False, False),
    ((4, 3), torch.float32, True, False),
    (SHAPE, torch.bfloat16, False, True),
    (SHAPE, torch.float32, True, True),
]


@pytest.mark.promise("K5")
@pytest.mark.parametrize("shape, dtype, requires_grad, last", OPERANDS)
def test_registration_of_the_sum(shape, dtype, requires_grad, last):
    (weights, *tensors), norms = make(shape, dtype, requires_grad, last)
    given = list(norms[3][2:4])
    opcheck(
        torch.ops.pyfast_nas.norm_mixed_sum.default,
        (tensors[:4], weights, tensors[4:], given, *PLAN),
    )


@pytest.mark.promise("K5")
@pytest.mark.parametrize("shape, dtype, requires_grad, last", OPERANDS)
@pytest.mark.parametrize(
    "wanted", [([0, 1, 2, 3], True, [0, 1, 2, 3]), ([2], False, [1]), ([], True, [])]
)
def test_registration_of_the_backward(shape, dtype, requires_grad, last, wanted):
    (weights, *tensors), norms = make(shape, dtype, requires_grad, last)
    with torch.no_grad():
        _, statistics = ops.norm_mixed_sum(tensors[:4], weights, norms)
    gradient = torch.randn(shape, dtype=dtype, requires_grad=requires_grad)
    opcheck(
        torch.ops.pyfast_nas.norm_mixed_sum_backward.default,
        (gradient, tensors[:4], weights, tensors[4:], statistics, *PLAN, *wanted),
    )


@pytest.mark.promise("K6")
def test_no_gradient_is_lost_on_the_way_through_the_operators(kernels):
    (weights, *tensors), norms = make()
    given = list(norms[3][2:4])
    y, statistics = torch.ops.pyfast_nas.norm_mixed_sum(
        tensors[:4], weights, tensors[4:], given, *PLAN
    )
    assert y.requires_grad and not statistics.requires_grad
    found = torch.ops.pyfast_nas.norm_mixed_sum_backward(
        y, tensors[:4], weights, tensors[4:], statistics, *PLAN, [0], True, [0]
    )
    assert all(t.requires_grad for t in tree_leaves(found))


def test_the_backward_in_plain_operations_is_that_of_the_kernel(kernels):
    (weights, *tensors), norms = make((3, 2, 5, 5), requires_grad=False)
    _, statistics = ops.norm_mixed_sum(tensors[:4], weights, norms)
    gradient = torch.randn((3, 2, 5, 5), dtype=torch.float64)
    arguments = (gradient, tensors[:4], weights, tensors[4:], statistics, *PLAN)
    wanted = ([3, 0, 1, 2], True, [1, 0, 3])
    got = _library.call_norm_mixed_sum_backward(*arguments, *wanted)
    want = reference_norm.planned_norm_mixed_sum_backward(*arguments, *wanted)
    torch.testing.assert_close(tree_leaves(got), tree_leaves(want))


@pytest.mark.promise("K17")
@pytest.mark.parametrize("norm", ["batch", "given"])
def test_compiles_without_a_break(norm, kernels):
    compilations = []

    def counting(module, inputs):
        compilations.append(1)
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(module, inputs)

    _, norms = make(dtype=torch.float32)
    norms = norms if norm == "given" else [norms[0], norms[1], None, None]
    params = [t.detach().requires_grad_() for t in params_of(norms)]

    def step(weights, *xs):
        y, statistics = ops.norm_mixed_sum(
            [x.relu() for x in xs], weights.softmax(0), with_params(norms, params)
        )
        return y.sin(), statistics

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=counting, fullgraph=True)
    for batch in range(2, 12):
        inputs = [t.detach().requires_grad_() for t in make((batch, 2, 3, 4), torch.float32)[0][:5]]
        got, want = compiled(*inputs), step(*inputs)
        torch.testing.assert_close(got, want)
        assert not got[1].requires_grad
        leaves = [*inputs, *params]
        torch.testing.assert_close(*[torch.autograd.grad(y.sum(), leaves) for y, _ in (got, want)])
    assert len(compilations) <= 2


# Inductor writes, compiles and loads C++ of its own.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
@pytest.mark.promise("K17")
def test_inductor_compiles_it(kernels):
    inputs, norms = make((8, 4, 6, 6), torch.float32)
    call = sum_of(ops.norm_mixed_sum, norms)
    torch._dynamo.reset()
    got, want = torch.compile(call, fullgraph=True)(*inputs), call(*inputs)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*[torch.autograd.grad(y.sin().sum(), inputs) for y in (got, want)])


def test_a_call_without_gradients_takes_no_function(monkeypatch, kernels):
    monkeypatch.setattr(_library.DirectFunction, "apply", None)
    (weights, *tensors), _ = make(requires_grad=False)
    assert not ops.norm_mixed_sum(tensors[:1], weights[:1], [Norm()])[0].requires_grad
