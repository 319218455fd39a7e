"""Products with second derivatives: values, laws, what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyfast_nas.errors import ConfigError, DivergenceError
from pyfast_nas.hypergradients import BilevelProblem, HessianProducts, hvp_aa, hvp_aw, hvp_ww

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
NETS = {"plain": {}, "batch norm": {"norm": True}, "dropout": {"dropout": 0.2}}
MODES = ("exact", "forward_over_reverse", "finite_difference")


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]


def plain_products(model, problem, batch, u):
    """H u and G u by torch alone, with the dropout mask of the caller's random state."""
    state = torch.get_rng_state()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    torch.set_rng_state(state)
    gradients = torch.autograd.grad(loss, problem.weights, create_graph=True)
    inner = sum((g * e).sum() for g, e in zip(gradients, u, strict=True))
    both = torch.autograd.grad(inner, [*problem.weights, *problem.alphas])
    return both[: len(u)], both[len(u) :]


@pytest.mark.promise("H1")
@pytest.mark.parametrize("mode", ["exact", "forward_over_reverse"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_exact_product_is_that_of_plain_autograd(
    dtype, tolerance, mode, net, smooth, batch, like, distance
):
    model, problem = smooth(dtype, **net)
    u, data = like(problem.weights, 1), batch(2, dtype=dtype)
    hessian, mixed = plain_products(model, problem, data, u)
    products = HessianProducts(problem, data, mode=mode)
    assert distance(products.ww(u), hessian) <= tolerance
    assert distance(products.aw(u), mixed) <= tolerance
    together = products.both(u)
    assert distance(together[0], hessian) <= tolerance
    assert distance(together[1], mixed) <= tolerance


@pytest.mark.promise("H2")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_finite_difference_is_close_on_smooth_nets(dtype, net, smooth, batch, like, distance):
    _, problem = smooth(dtype, **net)
    u, data = like(problem.weights, 1), batch(2, dtype=dtype)
    bound = 1e-2 if "dropout" in net else {torch.float64: 1e-5, torch.float32: 1e-3}[dtype]
    radius = 1e-3 if dtype is torch.float64 else 1e-2
    exact = HessianProducts(problem, data)
    differences = HessianProducts(problem, data, mode="finite_difference", radius=radius)
    assert distance(differences.ww(u), exact.ww(u)) <= bound
    assert distance(differences.aw(u), exact.aw(u)) <= bound


@pytest.mark.promise("H2")
@pytest.mark.parametrize("kind", ["ww", "aw", "wa", "aa"])
def test_error_of_the_difference_falls_with_the_square_of_the_radius(
    kind, net, smooth, batch, like, distance
):
    _, problem = smooth(**net)
    u = like(problem.alphas if kind in ("wa", "aa") else problem.weights, 1)
    exact = getattr(HessianProducts(problem, batch(2)), kind)(u)
    errors = [
        distance(
            getattr(
                HessianProducts(problem, batch(2), mode="finite_difference", radius=radius), kind
            )(u),
            exact,
        )
        for radius in (1e-1, 1e-2, 1e-3)
    ]
    assert errors[0] >= 30 * errors[1]
    assert math.log10(errors[0] / errors[2]) == pytest.approx(4, abs=0.2)


@pytest.mark.promise("H2")
def test_difference_does_not_know_the_length_of_the_vector(smooth, batch, like, distance):
    _, problem = smooth()
    products = HessianProducts(problem, batch(2), mode="finite_difference")
    u = like(problem.weights, 1)
    for factor in (1e-6, 1e6):
        scaled = products.ww([factor * entry for entry in u])
        assert distance([entry / factor for entry in scaled], products.ww(u)) <= 1e-9


@pytest.mark.promise("H2")
def test_difference_sees_no_kink_at_a_tiny_radius_only(batch, like, distance):
    """ReLU: the product that ignores kinks is the difference that crosses none."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 3)).double()
    problem = BilevelProblem.of_module(model, alphas=[model[2].bias])
    u = like(problem.weights, 1)
    exact = HessianProducts(problem, batch(2, 64)).ww(u)

    def error(radius):
        how = {"mode": "finite_difference", "radius": radius}
        return distance(HessianProducts(problem, batch(2, 64), **how).ww(u), exact)

    assert error(1e-6) <= 1e-6
    assert error(1e-1) > 1e-2


@pytest.mark.promise("H6")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_products_are_linear_and_symmetric(seed, mode, net, smooth, batch, like, dot, distance):
    _, problem = smooth(**net)
    # The difference is linear as far as its own error goes.
    tolerance = 1e-11 if mode != "finite_difference" else 1e-5
    products = HessianProducts(problem, batch(seed), mode=mode, radius=1e-3)
    u, v = like(problem.weights, 10 + seed), like(problem.weights, 20 + seed)
    beta = like(problem.alphas, 30 + seed)
    combined = [2.0 * a - 0.7 * b for a, b in zip(u, v, strict=True)]
    for product in (products.ww, products.aw):
        apart = [2.0 * a - 0.7 * b for a, b in zip(product(u), product(v), strict=True)]
        assert distance(product(combined), apart) <= tolerance
    assert dot(u, products.ww(v)) == pytest.approx(dot(products.ww(u), v), rel=1e-5)
    assert dot(products.aw(u), beta) == pytest.approx(dot(u, products.wa(beta)), rel=1e-5)


def test_kept_graph_and_fresh_one_agree(smooth, batch, like, distance):
    _, problem = smooth(norm=True)
    u, v = like(problem.weights, 1), like(problem.weights, 2)
    products = HessianProducts(problem, batch(2))
    products.ww(u)
    assert distance(products.ww(v), HessianProducts(problem, batch(2)).ww(v)) == 0
    assert products.counts == {"ww": 2}


def test_plain_functions_give_the_same(smooth, batch, like, distance):
    _, problem = smooth()
    u, beta = like(problem.weights, 1), like(problem.alphas, 2)
    train = HessianProducts(problem, batch(2))
    valid = HessianProducts(problem, batch(3), split="valid")
    assert distance(hvp_ww(problem, batch(2), u), train.ww(u)) == 0
    assert distance(hvp_aw(problem, batch(2), u), train.aw(u)) == 0
    assert distance(hvp_aa(problem, batch(3), beta), valid.aa(beta)) == 0


@pytest.mark.promise("H4")
def test_both_evaluations_start_at_one_random_state(smooth, batch, like, monkeypatch):
    _, problem = smooth(dropout=0.5)
    states = []
    inner = problem.train_loss
    problem.train_loss = lambda data: states.append(torch.get_rng_state()) or inner(data)
    HessianProducts(problem, batch(1), mode="finite_difference").ww(like(problem.weights, 1))
    assert len(states) == 2
    assert torch.equal(*states)


@pytest.mark.promise("H4")
def test_two_evaluations_without_a_step_are_identical(smooth, batch):
    """What a difference of radius zero compares: equal to the bit, though half is dropped."""
    _, problem = smooth(dropout=0.5)
    first, second = (
        problem.gradients("train", batch(1), [*problem.weights, *problem.alphas]) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.rand(())
    third = problem.gradients("train", batch(1), problem.weights)
    assert not torch.equal(first[0], third[0])


class Growing(nn.Module):
    """What it computes depends on how often it ran."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.ones(()))
        self.linear = nn.Linear(5, 3).double()

    def forward(self, x):
        self.runs += 1
        return (self.linear(x) * self.runs).tanh()


def test_every_pass_begins_with_the_same_buffers(batch, like, distance):
    model = Growing()
    problem = BilevelProblem.of_module(model, alphas=[model.linear.bias])
    u = like(problem.weights, 1)
    with problem.quiet():
        exact = HessianProducts(problem, batch(1)).ww(u)
        how = {"mode": "finite_difference", "radius": 1e-4}
        differences = HessianProducts(problem, batch(1), **how)
        assert distance(differences.ww(u), exact) <= 1e-6
        assert distance(differences.ww(u), exact) <= 1e-6
    assert float(model.runs) == 1


@pytest.mark.promise("H5")
@pytest.mark.parametrize("mode", MODES)
def test_zero_gives_zero(mode, smooth, batch, snapshot):
    model, problem = smooth(norm=True)
    before = snapshot(model, problem)
    products = HessianProducts(problem, batch(1), mode=mode)
    zero = [torch.zeros_like(w) for w in problem.weights]
    assert all(not entry.any() for entry in (*products.ww(zero), *products.aw(zero)))
    assert snapshot(model, problem) == before


@pytest.mark.promise("H5")
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_is_refused(mode, value, smooth, batch, like, snapshot):
    model, problem = smooth()
    before = snapshot(model, problem)
    u = like(problem.weights, 1)
    u[1][0] = value
    products = HessianProducts(problem, batch(1), mode=mode)
    for product in (products.ww, products.aw):
        with pytest.raises(DivergenceError, match="u must be finite"):
            product(u)
    assert snapshot(model, problem) == before


@pytest.mark.promise("H3")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    model = nn.Linear(5, 3).to(dtype)
    problem = BilevelProblem.of_module(model, alphas=[model.bias])
    with pytest.raises(ConfigError, match="must be float32 or wider, got"):
        HessianProducts(problem, None)


@pytest.mark.promise("H3")
@pytest.mark.parametrize("mode", MODES)
def test_autocast_is_off_inside(mode, smooth, batch, like, distance):
    _, problem = smooth(torch.float32)
    u, data = like(problem.weights, 1), batch(2, dtype=torch.float32)
    outside = HessianProducts(problem, data, mode=mode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = HessianProducts(problem, data, mode=mode)
        assert distance(inside.ww(u), outside.ww(u)) == 0
        assert distance(inside.aw(u), outside.aw(u)) == 0
        assert torch.is_autocast_enabled("cpu")


def test_a_vector_with_a_graph_is_taken_as_it_is(smooth, batch, like, distance):
    _, problem = smooth()
    u = like(problem.weights, 1)
    attached = [e.clone().requires_grad_() * 1.0 for e in u]
    for mode in MODES:
        products = HessianProducts(problem, batch(2), mode=mode)
        got = products.aw(attached)
        assert distance(got, products.aw(u)) == 0
        assert not got[0].requires_grad


def test_linear_losses_have_no_curvature():
    w, a = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    problem = BilevelProblem(
        weights=[w], alphas=[a], train_loss=lambda _: w.sum(), valid_loss=lambda _: a.sum()
    )
    for mode in MODES:
        products = HessianProducts(problem, None, mode=mode)
        for product in (products.ww, products.aw):
            assert product([torch.ones(2, dtype=torch.float64)])[0].tolist() == [0.0, 0.0]


class WithoutTangent(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Once(WithoutTangent):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def problem_of(function):
    w, a = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return BilevelProblem(
        weights=[w],
        alphas=[a],
        train_loss=lambda _: (a * function.apply(w)).sum(),
        valid_loss=lambda _: w.sum(),
    )


def test_a_layer_without_tangents_is_refused_and_leaves_no_trace():
    problem = problem_of(WithoutTangent)
    u = [torch.ones(2, dtype=torch.float64)]
    with pytest.raises(NotImplementedError, match="'forward_over_reverse' needs a forward deriv"):
        HessianProducts(problem, None, mode="forward_over_reverse").ww(u)
    assert problem.weights[0].tolist() == [1.0, 1.0]
    assert problem.weights[0].requires_grad
    assert HessianProducts(problem, None).ww(u)[0].tolist() == [2.0, 2.0]


@pytest.fixture
def cube():
    """An operator with one derivative, registered by Python."""
    with torch.library._scoped_library("pyfast_nas_tests", "DEF") as library:
        library.define("cube(Tensor x) -> Tensor")
        library.impl("cube", lambda x: x.pow(3), "CompositeExplicitAutograd")
        torch.library.register_autograd(
            "pyfast_nas_tests::cube",
            lambda ctx, grad: 3 * ctx.saved_tensors[0].square() * grad,
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
            lib=library,
        )
        yield torch.ops.pyfast_nas_tests.cube


def test_an_operator_without_tangents_is_refused_whatever_is_wanted(cube):
    w, a = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    problem = BilevelProblem(
        weights=[w],
        alphas=[a],
        train_loss=lambda _: (a * cube(w)).sum(),
        valid_loss=lambda _: w.sum(),
    )
    u = [torch.ones(2, dtype=torch.float64)]
    products = HessianProducts(problem, None, mode="forward_over_reverse")
    for product in (products.ww, products.aw):
        with pytest.raises(NotImplementedError, match="needs a forward derivative of every oper"):
            product(u)
    assert HessianProducts(problem, None).aw(u)[0].tolist() == [3.0, 3.0]


@pytest.mark.promise("K4")
def test_a_backward_operator_without_a_derivative_is_refused():
    """Torch warns of it, and goes on without its part."""
    w, a = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with torch.library._scoped_library("pyfast_nas_tests", "DEF") as library:
        library.define("square(Tensor x) -> Tensor")
        library.define("square_backward(Tensor grad, Tensor x) -> Tensor")
        library.impl("square", lambda x: x.square(), "CPU")
        library.impl("square_backward", lambda grad, x: 2 * grad * x, "CPU")
        ours = torch.ops.pyfast_nas_tests
        torch.library.register_autograd(
            "pyfast_nas_tests::square",
            lambda ctx, grad: ours.square_backward(grad, *ctx.saved_tensors),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
            lib=library,
        )
        problem = BilevelProblem(
            weights=[w],
            alphas=[a],
            train_loss=lambda _: (a * ours.square(w)).sum(),
            valid_loss=lambda _: w.sum(),
        )
        u = [torch.ones(2, dtype=torch.float64)]
        with pytest.raises(NotImplementedError, match="got pyfast_nas_tests::square_backward"):
            HessianProducts(problem, None).ww(u)
        (product,) = HessianProducts(problem, None, mode="finite_difference").ww(u)
    assert product.tolist() == pytest.approx([2.0, 2.0])


@pytest.mark.promise("K4")
def test_a_layer_that_is_differentiable_once_is_refused():
    problem = problem_of(Once)
    u = [torch.ones(2, dtype=torch.float64)]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        HessianProducts(problem, None).ww(u)
    (product,) = HessianProducts(problem, None, mode="finite_difference").ww(u)
    assert product.tolist() == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "fd"}, "mode must be one of"),
        ({"radius": 0.0}, "radius must be greater than 0, got 0.0"),
        ({"radius": math.nan}, "radius must be greater than 0, got nan"),
    ],
)
def test_options_out_of_range_are_refused(change, message, quadratic):
    with pytest.raises(ConfigError, match=message):
        HessianProducts(quadratic(), None, **change)


def test_vectors_of_other_shapes_are_refused(quadratic):
    with pytest.raises(
        ValueError, match=r"hvp_ww: u must have the shapes of the weights, \[\[2\]\]"
    ):
        HessianProducts(quadratic(), None).ww([torch.ones(3)])


def test_what_is_no_scalar_is_refused(quadratic):
    problem = quadratic()
    problem.train_loss = lambda _: problem.weights[0] * 1.0
    with pytest.raises(ValueError, match="train_loss must return a scalar, got a tensor of shape"):
        problem.gradients("train", None, problem.weights)


@pytest.mark.promise("S3")
def test_an_alpha_among_the_weights_is_refused():
    w = torch.ones(2, requires_grad=True)
    losses = {"train_loss": lambda _: w.sum(), "valid_loss": lambda _: w.sum()}
    with pytest.raises(ConfigError, match=r"alphas\[0\] must be no weight, got weights\[0\]"):
        BilevelProblem(weights=[w], alphas=[w], **losses)
    with pytest.raises(ConfigError, match=r"weights\[0\] must be a leaf tensor that requires a"):
        BilevelProblem(weights=[torch.ones(2)], alphas=[w], **losses)
