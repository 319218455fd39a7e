"""Derivatives of the sampler of every order and mode, transforms, compilation, registration."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from pyfast_nas import ops
from pyfast_nas.ops import reference

# torch's own forward-mode formulas are still scripted when they are first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

SEED = torch.tensor([17, 4])
SHAPES = [(1, 1, 1), (3, 5, 1), (3, 5, 2), (2, 4, 4), (2, 70, 3)]
RELAXATIONS = ("shared", "conditional", "subset")


def logits_of(rows, columns, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    logits = torch.randn(rows, columns, dtype=dtype, generator=generator)
    if columns > 4:
        logits[0, 1] = -torch.inf
    return logits


def sampler(k, relaxation, noise=None, seed=SEED, tau=0.8):
    def weights_of(logits, noise=noise):
        return ops.gumbel_topk(logits, k, tau=tau, seed=seed, relaxation=relaxation, noise=noise)[0]

    return weights_of


def finite(function, logits):
    """Keep masked logits out of finite differences: they have no neighbourhood."""
    mask = logits.isneginf()
    return lambda x: function(x.masked_fill(mask, -torch.inf)), logits.masked_fill(mask, 0.0)


@pytest.mark.promise("G4")
@pytest.mark.promise("K3")
@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize(("rows", "columns", "k"), SHAPES)
@pytest.mark.parametrize("fixed_noise", [False, True], ids=["drawn", "given"])
def test_first_derivative(backend, rows, columns, k, relaxation, fixed_noise):
    noise = ops.gumbel_noise(SEED, rows, columns).double() if fixed_noise else None
    function, logits = finite(sampler(k, relaxation, noise), logits_of(rows, columns))
    assert gradcheck(
        function,
        logits.requires_grad_(),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
        fast_mode=columns > 10,
    )


@pytest.mark.promise("K4")
@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize(("rows", "columns", "k"), SHAPES)
def test_second_derivative(backend, rows, columns, k, relaxation):
    function, logits = finite(sampler(k, relaxation), logits_of(rows, columns))
    assert gradgradcheck(
        function,
        logits.requires_grad_(),
        gen_non_contig_grad_outputs=True,
        check_fwd_over_rev=True,
        fast_mode=columns > 10,
    )


def test_noise_has_the_gradient_of_the_logits(backend):
    logits = logits_of(3, 5).nan_to_num(neginf=0.0).requires_grad_()
    noise = ops.gumbel_noise(SEED, 3, 5).double().requires_grad_()
    weights = sampler(2, "shared", noise)(logits)
    by_logits, by_noise = torch.autograd.grad(weights.square().sum(), (logits, noise))
    assert torch.equal(by_logits, by_noise)
    only = torch.autograd.grad(sampler(2, "shared", noise)(logits.detach()).square().sum(), noise)
    assert torch.equal(only[0], by_noise)


@pytest.mark.promise("K7")
def test_nothing_is_kept_where_nothing_is_asked(backend):
    weights, indices = ops.gumbel_topk(logits_of(3, 5), 2, tau=1.0, seed=SEED)
    assert not weights.requires_grad
    logits = logits_of(3, 5).requires_grad_()
    weights, indices = ops.gumbel_topk(logits, 2, tau=1.0, seed=SEED)
    assert weights.requires_grad
    assert not indices.requires_grad
    with torch.no_grad():
        assert not ops.gumbel_topk(logits, 2, tau=1.0, seed=SEED)[0].requires_grad


@pytest.mark.promise("K18")
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_transforms_agree_with_autograd(backend, relaxation):
    logits = logits_of(3, 5)
    weigh = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    function = sampler(2, relaxation)

    def loss(x):
        return (function(x).square() * weigh).sum()

    x = logits.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(x), x, create_graph=True)
    torch.testing.assert_close(torch.func.grad(loss)(logits), want.detach())
    direction = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (second,) = torch.autograd.grad((want * direction).sum(), x)
    _, by_forward = torch.func.jvp(torch.func.grad(loss), (logits,), (direction,))
    torch.testing.assert_close(by_forward, second)
    _, slope = torch.func.jvp(loss, (logits,), (direction,))
    torch.testing.assert_close(slope, (want.detach() * direction).sum())
    jacobian = torch.func.jacrev(loss)(logits)
    torch.testing.assert_close(jacobian, want.detach())
    torch.testing.assert_close(torch.func.jacfwd(loss)(logits), want.detach())
    hessian = torch.func.hessian(loss)(logits)
    torch.testing.assert_close((hessian * direction).sum((2, 3)), second)


def test_forward_mode_is_not_silently_zero(backend):
    logits = logits_of(3, 5, torch.float32)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, torch.ones_like(logits).cumsum(1))
        weights, indices = ops.gumbel_topk(dual, 2, tau=1.0, seed=SEED)
        tangent = forward_ad.unpack_dual(weights).tangent
        assert forward_ad.unpack_dual(indices).tangent is None
    assert float(tangent.abs().max()) > 0


@pytest.mark.promise("K18")
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_vmap_is_a_loop(backend, relaxation):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 6, 3, generator=generator)  # slices along the last dimension
    noise = torch.randn(3, 4, 6, generator=generator)
    seeds = torch.tensor([[1, 2], [3, 4], [5, 6]])

    def sample(x, seed=SEED, noise=None):
        return ops.gumbel_topk(x, 2, tau=0.9, seed=seed, relaxation=relaxation, noise=noise)

    cases = [
        ((2,), (logits,)),
        ((2, 0), (logits, seeds)),
        ((None, 0), (logits[..., 0], seeds)),
        ((2, None, 0), (logits, SEED, noise)),
        ((None, None, 0), (logits[..., 0], SEED, noise)),
    ]
    for dims, inputs in cases:
        got = torch.func.vmap(sample, in_dims=dims)(*inputs)
        slices = [
            sample(*(x if d is None else x.select(d, i) for x, d in zip(inputs, dims, strict=True)))
            for i in range(3)
        ]
        for y, want in zip(got, zip(*slices, strict=True), strict=True):
            torch.testing.assert_close(y, torch.stack(want), rtol=2e-6, atol=1e-7)


def test_per_sample_gradients(backend):
    logits = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def loss(x):
        return sampler(2, "conditional")(x).square().sum()

    got = torch.func.vmap(torch.func.grad(loss))(logits)
    want = torch.stack([torch.func.grad(loss)(x) for x in logits])
    torch.testing.assert_close(got, want)


@pytest.mark.promise("K17")
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_compiles_without_a_break(backend, relaxation):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def weights_of(logits, seed):
        weights, indices = ops.gumbel_topk(logits, 2, tau=0.7, seed=seed, relaxation=relaxation)
        return weights * 2, indices

    for rows in range(2, 12):
        logits = torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))
        x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        weights, indices = weights_of(x, SEED)
        weights.square().sum().backward()
        want, picks = ops.gumbel_topk(y, 2, tau=0.7, seed=SEED, relaxation=relaxation)
        (want * 2).square().sum().backward()
        assert torch.equal(indices, picks)
        torch.testing.assert_close(weights, want * 2, rtol=2e-6, atol=1e-7)
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 2
    with torch.no_grad():
        weights, _ = weights_of(torch.zeros(3, 8), SEED)
        assert not weights.requires_grad


@pytest.mark.promise("K17")
def test_noise_compiles(backend):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def noise(seed):
        return ops.gumbel_noise(seed, 3, 7), ops.philox_uniform(seed, 5, 6, stream=2)

    for got, want in zip(
        noise(SEED),
        (ops.gumbel_noise(SEED, 3, 7), ops.philox_uniform(SEED, 5, 6, stream=2)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_export_like_tracing_keeps_the_operator(kernels):
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: ops.gumbel_topk(x, 2, tau=1.0, seed=SEED)[0])(torch.zeros(3, 4))
    assert "pyfast_nas.gumbel_topk" in graph.code


@pytest.mark.promise("K5")
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_registrations_pass_opcheck(backend, dtype, conditional, requires_grad):
    operators = torch.ops.pyfast_nas
    logits = torch.randn(3, 5, dtype=dtype, requires_grad=requires_grad)
    noise = torch.randn(3, 5, dtype=dtype, requires_grad=requires_grad)
    for given in (None, noise):
        arguments = (logits, 2, 0.7, SEED, conditional, True, given)
        torch.library.opcheck(operators.gumbel_topk.default, arguments)
    _, indices, keys = operators.gumbel_topk(logits, 2, 0.7, SEED, conditional, True, None)
    keys = keys.detach().requires_grad_(requires_grad)
    grad = torch.randn(3, 2, dtype=dtype, requires_grad=requires_grad)
    arguments = (grad, keys, indices, 0.7, conditional)
    torch.library.opcheck(operators.gumbel_topk_backward.default, arguments)
    torch.library.opcheck(operators.philox_uniform.default, (SEED, 3, 4, 6, 1))


@pytest.mark.promise("K6")
def test_bare_operators_have_derivatives_or_refuse(kernels):
    operators = torch.ops.pyfast_nas
    logits = logits_of(3, 5).nan_to_num(neginf=0.0).requires_grad_()
    for conditional in (False, True):

        def weights_of(x, conditional=conditional):
            return operators.gumbel_topk(x, 2, 0.7, SEED, conditional, True, None)[0]

        assert gradcheck(weights_of, logits)
        assert gradgradcheck(weights_of, logits)
        _, indices, keys = operators.gumbel_topk(logits, 2, 0.7, SEED, conditional, True, None)
        grad = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

        def backward_of(grad, keys, indices=indices, conditional=conditional):
            return operators.gumbel_topk_backward(grad, keys, indices, 0.7, conditional)

        keys = keys.detach().requires_grad_()
        assert gradcheck(backward_of, (grad, keys))
        assert gradgradcheck(backward_of, (grad, keys))
    weights, _, _ = operators.gumbel_topk(logits, 2, 0.7, SEED, False, False, None)
    with pytest.raises(RuntimeError, match="keep_keys must be True where a gradient is needed"):
        weights.sum().backward()


@pytest.mark.promise("K8")
def test_changing_what_was_saved_is_noticed(kernels):
    logits = logits_of(3, 5).requires_grad_()
    weights, indices = ops.gumbel_topk(logits, 2, tau=1.0, seed=SEED)
    indices.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        weights.sum().backward()


def test_backward_formula_is_the_derivative_of_the_weights():
    """The closed forms of the reference against autograd through its own weights."""
    keys = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    indices = keys.topk(3).indices
    keys.requires_grad_()
    for conditional in (False, True):
        grad = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        weights = reference.relaxed_weights(keys, indices, 0.6, conditional)
        (want,) = torch.autograd.grad(weights, keys, grad, create_graph=True)
        got = reference.gumbel_topk_backward(grad, keys, indices, 0.6, conditional)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
        h = torch.randn(4, 6, dtype=torch.float64)
        want_second = torch.autograd.grad(want, (grad, keys), h)
        second = reference.gumbel_topk_double_backward(h, grad, keys, indices, 0.6, conditional)
        torch.testing.assert_close(second, want_second, rtol=1e-11, atol=1e-13)
        tangent = torch.func.jvp(
            lambda x, c=conditional: reference.relaxed_weights(x, indices, 0.6, c), (keys,), (h,)
        )[1]
        got = reference.relaxed_weights_tangent(h, keys, indices, 0.6, conditional)
        torch.testing.assert_close(got, tangent, rtol=1e-12, atol=1e-14)
