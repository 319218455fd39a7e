"""Every estimator on problems whose answers are known in closed form."""

import functools

import pytest
import torch

from pyfast_nas import hypergradients as hg

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
CLOSE = {"rel": 0.0, "abs": 1e-10}

AT_THE_OPTIMUM = {
    "first order": (hg.first_order, {}, 1.0),
    "identity": (hg.identity, {"scale": 1.0}, 0.9),
    **{
        f"Neumann {gamma} {order}": (hg.neumann, {"gamma": gamma, "order": order}, value)
        for gamma, values in (
            (0.2, (0.98, 0.92, 0.864, 0.82, 0.7632, 0.7125504, 0.700000030114)),
            (
                0.25,
                (
                    *(0.975, 0.8875, 0.8234375, 0.780859375),
                    *(0.734643554688, 0.704161024094, 0.70000000018),
                ),
            ),
        )
        for order, value in zip((0, 1, 2, 3, 5, 10, 50), values, strict=True)
    },
    "CG 1": (hg.conjugate_gradient, {"maxiter": 1}, 0.971038251366),
    "CG 2": (hg.conjugate_gradient, {"maxiter": 2}, 0.7),
    "normal CG": (hg.conjugate_gradient, {"maxiter": 2, "normal_equations": True}, 0.7),
    "CG, damped": (hg.conjugate_gradient, {"damping": 0.1}, 0.725952813067),
    "exact": (hg.exact, {}, 0.7),
    "exact, damped 0.1": (hg.exact, {"damping": 0.1}, 0.725952813067),
    "exact, damped 0.01": (hg.exact, {"damping": 0.01}, 0.702778162809),
    "Nystrom 0.1": (hg.nystrom, {"rank": 2, "rho": 0.1}, 0.725952813067),
    "Nystrom 0.01": (hg.nystrom, {"rank": 2, "rho": 0.01}, 0.702778162809),
    "Nystrom, one column": (hg.nystrom, {"columns": [0], "rho": 0.1}, -8.737864077670),
}
MODES = ("exact", "forward_over_reverse", "finite_difference")


@pytest.mark.promise("S6")
@pytest.mark.parametrize("name", AT_THE_OPTIMUM)
def test_value_at_the_optimum(name, quadratic):
    estimator, options, value = AT_THE_OPTIMUM[name]
    (gradient,) = estimator(quadratic(), None, None, **options)
    assert gradient.item() == pytest.approx(value, **CLOSE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", [n for n in AT_THE_OPTIMUM if n not in ("first order",) and "exact" not in n]
)
def test_value_whatever_computes_the_products(name, mode, quadratic):
    """The problem is quadratic: differences are exact but for rounding."""
    estimator, options, value = AT_THE_OPTIMUM[name]
    (gradient,) = estimator(quadratic(), None, None, hvp=mode, **options)
    assert gradient.item() == pytest.approx(value, rel=0.0, abs=1e-10)


OFF_THE_OPTIMUM = {
    "one step": ({}, {}, 0.92),
    "one step with momentum and decay": (
        {"buffer": [0.5, -0.5], "momentum": 0.9, "weight_decay": 0.01},
        {},
        0.9291,
    ),
    "three steps": ({}, {"steps": 3}, 0.8338625),
    "three steps, last one": ({}, {"steps": 3, "last": 1}, 0.94525),
    "three steps, last two": ({}, {"steps": 3, "last": 2}, 0.88865),
    "three heavy-ball steps": ({"momentum": 0.9}, {"steps": 3}, 0.8746415),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OFF_THE_OPTIMUM)
def test_value_through_steps(name, mode, quadratic):
    settings, options, value = OFF_THE_OPTIMUM[name]
    problem = quadratic((1.0, 0.0), **settings)
    (gradient,) = hg.unrolled(problem, None, None, hvp=mode, **options)
    assert gradient.item() == pytest.approx(value, **CLOSE)


@pytest.mark.parametrize("name", ["one step", "one step with momentum and decay"])
def test_value_of_the_published_step(name, quadratic):
    settings, _, value = OFF_THE_OPTIMUM[name]
    problem = quadratic((1.0, 0.0), **settings)
    (gradient,) = hg.finite_difference(problem, None, None)
    assert gradient.item() == pytest.approx(value, **CLOSE)


def test_values_where_the_inner_problem_is_not_solved(quadratic):
    problem = quadratic((1.0, 0.0))
    assert hg.exact(problem, None, None)[0].item() == pytest.approx(0.2, **CLOSE)
    (gradient,) = hg.neumann(problem, None, None, order=2, gamma=0.1)
    assert gradient.item() == pytest.approx(0.73, **CLOSE)


def test_value_of_idarts(quadratic):
    """Two steps of the weights, then the series at the learning rate."""
    problem = quadratic((1.0, 0.0))
    (weight,) = problem.weights
    optimizer = problem.weight_optimizer.optimizer
    for _ in range(2):
        (weight.grad,) = torch.autograd.grad(problem.train_loss(None), [weight])
        optimizer.step()
    assert weight.tolist() == pytest.approx([0.42, -0.235])
    (gradient,) = hg.neumann(problem, None, None, order=2)
    assert gradient.item() == pytest.approx(0.80865, **CLOSE)


ONE_STEP = {
    "published": hg.finite_difference,
    "exact": functools.partial(hg.unrolled, hvp="exact"),
}


@pytest.mark.parametrize("estimator", ONE_STEP.values(), ids=ONE_STEP)
@pytest.mark.parametrize(
    ("rate", "value", "limit"),
    [(0.0, -4.0, 2.0), (0.1, -2.8, 5 / 3), (0.25, -1.0, 4 / 3), (0.5, 2.0, 1.0)],
)
def test_figure_2(rate, value, limit, estimator, figure):
    problem = figure(lr=rate)
    assert estimator(problem, None, None)[0].item() == pytest.approx(value, **CLOSE)
    # Alternating descent ends at 2 / (1 + 2 xi): only at xi = 1/2 at the solution, 1.
    (alpha,), (weight,) = problem.alphas, problem.weights
    for _ in range(200):
        (gradient,) = estimator(problem, None, None)
        with torch.no_grad():
            alpha -= 0.2 * gradient
            weight -= 0.4 * (weight - alpha)
    assert (alpha.item(), weight.item()) == (
        pytest.approx(limit, abs=1e-8),
        pytest.approx(limit, abs=1e-8),
    )


@pytest.mark.parametrize("estimator", ONE_STEP.values(), ids=ONE_STEP)
def test_figure_2_with_momentum(estimator, figure):
    problem = figure(lr=0.1, buffer=1.5, momentum=0.9, weight_decay=0.01)
    assert estimator(problem, None, None)[0].item() == pytest.approx(-2.933, **CLOSE)


@pytest.mark.parametrize("estimator", ONE_STEP.values(), ids=ONE_STEP)
def test_the_mixed_derivative_may_be_taken_after_the_step(estimator, figure):
    """On a cubic inner loss the places differ: d2L/dadw = -2w there."""
    w, a = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (1.0, 2.0))
    problem = hg.BilevelProblem(
        weights=[w],
        alphas=[a],
        train_loss=lambda _: (w.pow(3) / 3 - a * w.square()).sum(),
        valid_loss=lambda _: (a * w).sum(),
        weight_optimizer=torch.optim.SGD([w], lr=0.1),
    )
    stepped = 1.0 - 0.1 * (1.0 - 4.0)
    for place, at in (("start", 1.0), ("unrolled", stepped)):
        (gradient,) = estimator(problem, None, None, mixed_at=place)
        assert gradient.item() == pytest.approx(stepped - 0.1 * (-2 * at) * 2.0, abs=1e-9)
