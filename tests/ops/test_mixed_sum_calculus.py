"""mixed_sum: derivatives of every order and mode, transforms, registration, compilation."""

import pytest
import torch
from torch.autograd import Function, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.library import opcheck
from torch.utils._pytree import tree_leaves

from pyfast_nas import ops
from pyfast_nas.ops import _library, reference

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


def make(shape=(2, 3), num_ops=3, dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(num_ops)]
    weights = torch.randn(num_ops, generator=generator, dtype=dtype)
    return [t.requires_grad_(requires_grad) for t in (weights, *xs)]


def summed(weights, *xs):
    return ops.mixed_sum(xs, weights)


def opaque(weights, *xs):
    return torch.ops.pyfast_nas.mixed_sum(xs, weights)


@pytest.mark.promise("K3")
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 2)], ids=str)
def test_first_derivatives(shape, backend):
    inputs = make(shape)
    assert gradcheck(
        summed, inputs, check_forward_ad=True, check_batched_grad=True, check_undefined_grad=True
    )


@pytest.mark.promise("K3")
def test_first_derivatives_on_more_elements(backend):
    inputs = make((3, 2, 5, 7), num_ops=9)
    assert gradcheck(summed, inputs, check_forward_ad=True, fast_mode=True)
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda w, x: ops.mixed_sum([x, x], w), (make((4,), 2)[0], x))


@pytest.mark.promise("K4")
@pytest.mark.parametrize("non_contiguous", [False, True])
def test_second_derivatives(non_contiguous, backend):
    assert gradgradcheck(
        summed,
        make(),
        gen_non_contig_grad_outputs=non_contiguous,
        check_batched_grad=True,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
    )


@pytest.mark.promise("K4", "K7")
@pytest.mark.parametrize("fixed", [(0,), (1,), (0, 1), (1, 2), (0, 2, 3), (1, 2, 3)], ids=str)
def test_second_derivatives_of_subsets(fixed, backend):
    inputs = make()
    constants = {index: inputs[index].detach() for index in fixed}
    free = [t for index, t in enumerate(inputs) if index not in fixed]

    def partly(*tensors):
        rest = iter(tensors)
        return summed(*[constants[i] if i in constants else next(rest) for i in range(4)])

    assert gradcheck(partly, free, check_forward_ad=True)
    assert gradgradcheck(partly, free, check_fwd_over_rev=True)


@pytest.mark.promise("K4")
def test_third_derivatives(backend):
    weights, *xs = make((2,), 2)

    def twice(weights, *xs):
        y = summed(weights, *xs).tanh().sum()
        return torch.autograd.grad(y, [weights, *xs], create_graph=True)

    assert gradgradcheck(twice, [weights, *xs])


@pytest.mark.promise("K4")
def test_opaque_operators_differentiate_twice(kernels):
    inputs = make()
    assert gradcheck(opaque, inputs)
    assert gradgradcheck(opaque, inputs)


@pytest.mark.promise("K4")
def test_the_check_sees_a_detached_backward():
    class Detached(Function):
        @staticmethod
        def forward(ctx, weights, *xs):
            ctx.save_for_backward(weights, *xs)
            return reference.mixed_sum(xs, weights)

        @staticmethod
        def backward(ctx, grad):
            weights, *xs = (t.detach() for t in ctx.saved_tensors)
            grad_xs, grad_weights = reference.mixed_sum_backward(grad, xs, weights, [0, 1, 2], True)
            return grad_weights, *grad_xs

    inputs = make()
    assert gradcheck(Detached.apply, inputs)
    with pytest.raises(RuntimeError, match=r"mismatch|not require"):
        gradgradcheck(Detached.apply, inputs)


def loss(weights, *xs):
    return ops.mixed_sum(xs, weights).tanh().square().sum()


def plain_loss(weights, *xs):
    return reference.mixed_sum(xs, weights).tanh().square().sum()


@pytest.mark.promise("K4", "K18")
def test_mixed_derivative_against_plain_autograd(kernels):
    results = []
    for function in (loss, plain_loss):
        weights, *xs = make()
        first = torch.autograd.grad(function(weights, *xs), weights, create_graph=True)[0]
        results.append(torch.autograd.grad((first * torch.arange(1.0, 4)).sum(), xs))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.promise("K18")
@pytest.mark.parametrize(
    "outer, inner", [(jacrev, jacrev), (jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)]
)
@pytest.mark.parametrize("argnums", [0, 1])
def test_hessians_four_ways(outer, inner, argnums, kernels):
    inputs = make(requires_grad=False)
    got = outer(inner(loss, argnums=argnums), argnums=argnums)(*inputs)
    want = hessian(plain_loss, argnums=argnums)(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.promise("K18")
def test_hessian_vector_products_both_ways(kernels):
    inputs = make(requires_grad=False)
    vectors = [torch.full_like(t, 0.5) for t in inputs]
    every = (0, 1, 2, 3)

    def over_reverse(function):
        return jvp(grad(function, argnums=every), tuple(inputs), tuple(vectors))[1]

    def reverse_over_reverse(function):
        leaves = [t.clone().requires_grad_() for t in inputs]
        first = torch.autograd.grad(function(*leaves), leaves, create_graph=True)
        dot = sum((a * b).sum() for a, b in zip(first, vectors, strict=True))
        return torch.autograd.grad(dot, leaves)

    want = reverse_over_reverse(plain_loss)
    for got in (over_reverse(loss), reverse_over_reverse(loss)):
        torch.testing.assert_close(tuple(got), tuple(want), rtol=1e-10, atol=1e-10)


@pytest.mark.promise("K18")
@pytest.mark.parametrize("batched", [(0,), (1,), (0, 2), (0, 1, 2, 3)], ids=str)
def test_vmap_equals_a_loop(batched, backend):
    inputs = make(requires_grad=False)
    generator = torch.Generator().manual_seed(1)
    dims = [-1 if index in batched else None for index in range(4)]
    stacked = [
        torch.randn((*t.shape, 5), generator=generator, dtype=t.dtype) if dim == -1 else t
        for t, dim in zip(inputs, dims, strict=True)
    ]
    gradients = grad(loss, argnums=(0, 1, 2, 3))
    for function in (summed, gradients, lambda *t: jvp(loss, t, t)):
        got = vmap(function, in_dims=tuple(dims))(*stacked)
        single = [
            function(*[t[..., b] if d == -1 else t for t, d in zip(stacked, dims, strict=True)])
            for b in range(5)
        ]
        want = [torch.stack(leaves) for leaves in zip(*map(tree_leaves, single), strict=True)]
        torch.testing.assert_close(tree_leaves(got), want, rtol=1e-12, atol=1e-12)


@pytest.mark.promise("K18")
def test_vmap_of_halves_keeps_the_dtypes(backend):
    xs = [torch.randn(4, 6).bfloat16() for _ in range(3)]
    y = vmap(lambda w: ops.mixed_sum(xs, w))(torch.randn(5, 3))
    assert y.dtype == torch.float32 and y.shape == (5, 4, 6)
    wide = vmap(lambda w, *x: ops.mixed_sum(x, w))(torch.randn(4, 3).bfloat16(), *xs)
    assert wide.dtype == torch.bfloat16


OPERANDS = [
    ((2, 3), torch.float64, True),
    ((2, 3), torch.float32, False),
    ((0, 3), torch.float32, True),
    ((2, 4, 3, 3), torch.bfloat16, False),
]


@pytest.mark.promise("K5")
@pytest.mark.parametrize("shape, dtype, requires_grad", OPERANDS)
def test_registration_of_the_sum(shape, dtype, requires_grad):
    weights, *xs = make(shape, dtype=dtype, requires_grad=requires_grad)
    opcheck(torch.ops.pyfast_nas.mixed_sum.default, (xs, weights))


@pytest.mark.promise("K5")
@pytest.mark.parametrize("shape, dtype, requires_grad", OPERANDS)
@pytest.mark.parametrize("wanted, wants_weights", [([0, 2], True), ([], True), ([1], False)])
def test_registration_of_the_backward(shape, dtype, requires_grad, wanted, wants_weights):
    weights, *xs = make(shape, dtype=dtype, requires_grad=requires_grad)
    gradient = torch.ones(shape, dtype=dtype, requires_grad=requires_grad)
    opcheck(
        torch.ops.pyfast_nas.mixed_sum_backward.default,
        (gradient, xs, weights, wanted, wants_weights),
    )


@pytest.mark.promise("K5")
def test_registration_for_channels_last():
    xs = [torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last) for _ in range(2)]
    opcheck(torch.ops.pyfast_nas.mixed_sum.default, (xs, torch.randn(2, requires_grad=True)))


@pytest.mark.promise("K6")
def test_no_gradient_is_lost_on_the_way_through_the_operators():
    weights, *xs = make()
    y = torch.ops.pyfast_nas.mixed_sum(xs, weights)
    grad_xs, grad_weights = torch.ops.pyfast_nas.mixed_sum_backward(y, xs, weights, [0], True)
    assert y.requires_grad and grad_xs[0].requires_grad and grad_weights.requires_grad


@pytest.mark.promise("K17")
@pytest.mark.parametrize("function", [summed, opaque], ids=["public", "opaque"])
def test_compiles_without_a_break(function, kernels):
    compilations = []

    def counting(module, inputs):
        compilations.append(1)
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(module, inputs)

    def step(weights, *xs):
        return function(weights.softmax(0), *[x.relu() for x in xs]).sin()

    torch._dynamo.reset()
    compiled = torch.compile(step, backend=counting, fullgraph=True)
    for batch in range(2, 12):
        inputs = make((batch, 3, 4), dtype=torch.float32)
        got, want = compiled(*inputs), step(*inputs)
        torch.testing.assert_close(got, want)
        grads = [torch.autograd.grad(y.sum(), inputs) for y in (got, want)]
        torch.testing.assert_close(*grads)
    assert len(compilations) <= 2


def test_a_call_without_gradients_takes_no_function(monkeypatch, kernels):
    monkeypatch.setattr(_library.DirectFunction, "apply", None)
    weights, *xs = make(requires_grad=False)
    assert not ops.mixed_sum(xs, weights).requires_grad
