"""Estimators of the implicit function theorem: limits, bounds, costs, what they report."""

import copy
import math

import pytest
import torch

from pyfast_nas import hypergradients as hg
from pyfast_nas.errors import ConfigError, DivergenceError
from pyfast_nas.hypergradients.conjugate_gradient import solve


@pytest.mark.parametrize("seed", range(5))
def test_all_agree_in_the_limit(seed, spd, distance):
    problem, h, _, _ = spd(size=12, seed=seed)
    want = hg.exact(problem, None, None)
    gamma = 1.0 / float(torch.linalg.eigvalsh(h)[-1])
    estimates = {
        "Neumann": hg.neumann(problem, None, None, order=2000, gamma=gamma),
        "CG": hg.conjugate_gradient(problem, None, None, maxiter=30, rtol=1e-13),
        "normal CG": hg.conjugate_gradient(
            problem, None, None, maxiter=60, rtol=1e-14, normal_equations=True
        ),
        "Nystrom": hg.nystrom(problem, None, None, rank=12, rho=1e-10),
    }
    # Woodbury's form loses the digits of 1 / rho.
    for name, estimate in estimates.items():
        assert distance(estimate, want) <= (1e-4 if name == "Nystrom" else 1e-8), name


@pytest.mark.parametrize("seed", range(20))
def test_truth_is_the_formula(seed, spd, distance):
    problem, h, g, v = spd(seed=seed, optimum=False)
    want = 3 * problem.alphas[0].detach().square() - g @ torch.linalg.solve(h, v)
    assert distance(hg.exact(problem, None, None), [want]) <= 1e-12


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("order", [0, 1, 2, 5, 20])
def test_neumann_keeps_its_bound(order, seed, spd):
    problem, h, g, v = spd(seed=seed)
    low, high = torch.linalg.eigvalsh(h)[[0, -1]].tolist()
    gamma = 1.0 / high
    truth, estimate = (
        torch.stack(tuple(e(problem, None, None, **o)))
        for e, o in ((hg.exact, {}), (hg.neumann, {"order": order, "gamma": gamma}))
    )
    bound = (
        float(torch.linalg.matrix_norm(g, 2) * v.norm()) / low * (1 - gamma * low) ** (order + 1)
    )
    assert float((estimate - truth).norm()) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("order", [0, 1, 4])
def test_neumann_is_unrolling_at_the_optimum(order, spd, distance):
    problem, *_ = spd()
    series = hg.neumann(problem, None, None, order=order, gamma=0.1)
    steps = hg.unrolled(problem, None, None, steps=order + 1)
    assert distance(series, steps) <= 1e-12


def test_neumann_of_one_term_is_the_scaled_identity(smooth, batch):
    _, problem = smooth(norm=True)
    for gamma in (None, 0.3):
        series = hg.neumann(problem, batch(1), batch(2), order=0, gamma=gamma)
        scaled = hg.identity(problem, batch(1), batch(2), scale=gamma)
        assert torch.equal(series[0], scaled[0])


def test_estimates_are_linear_in_the_outer_gradient(spd, distance):
    problem, *_ = spd()
    implicit = hg.neumann(problem, None, None, order=3).implicit
    outer = problem.valid_loss
    problem.valid_loss = lambda batch: -2.5 * outer(batch)
    scaled = hg.neumann(problem, None, None, order=3).implicit
    assert distance(scaled, [-2.5 * implicit[0]]) <= 1e-13


COSTS = {
    "first order": (hg.first_order, {}, {}),
    "identity": (hg.identity, {}, {"aw": 1}),
    "Neumann 0": (hg.neumann, {"order": 0}, {"aw": 1}),
    "Neumann 3": (hg.neumann, {"order": 3}, {"ww": 3, "aw": 1}),
    "Neumann, checked": (
        hg.neumann,
        {"order": 3, "check_gamma": True, "damping": 2.0},
        {"ww": 23, "aw": 1},
    ),
    "CG": (hg.conjugate_gradient, {"maxiter": 4, "rtol": 0.0}, {"ww": 4, "aw": 1}),
    "normal CG": (
        hg.conjugate_gradient,
        {"maxiter": 4, "rtol": 0.0, "normal_equations": True},
        {"ww": 9, "aw": 1},
    ),
    "Nystrom": (hg.nystrom, {"rank": 3}, {"ww": 3, "aw": 1}),
    "exact": (hg.exact, {}, {"ww": 8, "aw": 1}),
}


@pytest.mark.promise("H7")
@pytest.mark.parametrize("name", COSTS)
def test_cost_in_products(name, spd):
    estimator, options, cost = COSTS[name]
    problem, *_ = spd()
    assert estimator(problem, None, None, **options).info.products == cost


PASSES = {
    "first order": (hg.first_order, {}, 0, 1),
    "published": (hg.finite_difference, {}, 3, 1),
    "one step": (hg.unrolled, {}, 2, 1),
    "Neumann": (hg.neumann, {"order": 3}, 1, 1),
    "Neumann, differences": (hg.neumann, {"order": 3, "hvp": "finite_difference"}, 8, 1),
    "CG": (hg.conjugate_gradient, {"maxiter": 3, "rtol": 0.0}, 1, 1),
}


@pytest.mark.parametrize("name", PASSES)
def test_cost_in_passes(name, spd):
    """Second-order DARTS takes four passes; exact products share one graph."""
    estimator, options, train, valid = PASSES[name]
    problem, *_ = spd()
    calls = {"train": 0, "valid": 0}

    def counted(split, loss):
        def call(batch):
            calls[split] += 1
            return loss(batch)

        return call

    problem.train_loss = counted("train", problem.train_loss)
    problem.valid_loss = counted("valid", problem.valid_loss)
    estimator(problem, None, None, **options)
    assert calls == {"train": train, "valid": valid}


def krylov(h, v, iterations):
    """The best vector of each Krylov space in the norm of h: what conjugate gradients find."""
    basis = [v]
    for _ in range(iterations - 1):
        basis.append(h @ basis[-1])
    q, _ = torch.linalg.qr(torch.stack(basis, 1))
    return q @ torch.linalg.solve(q.T @ h @ q, q.T @ v)


def cg_errors(spd):
    errors = []
    for seed in range(5):
        _, h, _, v = spd(size=6, seed=seed)
        for iterations in (1, 2, 4, 6):
            found = solve(lambda z, h=h: [h @ z[0]], [v], maxiter=iterations, rtol=0.0)
            best = krylov(h, v, iterations)
            errors.append(float((found.value[0] - best).norm() / best.norm()))
    return errors


def test_conjugate_gradients_are_best_in_every_krylov_space(spd):
    assert max(cg_errors(spd)) <= 1e-7


def test_first_iteration_is_the_steepest_descent(spd):
    """Its length <v, v> / <v, H v>: one product, no direction yet."""
    _, h, _, v = spd(size=6)
    found = solve(lambda z: [h @ z[0]], [v], maxiter=1)
    torch.testing.assert_close(found.value[0], v * (v @ v) / (v @ h @ v))


@pytest.mark.promise("H7")
def test_residual_is_reported_and_the_solve_ends_at_the_count(spd):
    _, h, _, v = spd(size=20)
    for iterations in (1, 3, 7):
        found = solve(lambda z: [h @ z[0]], [v], maxiter=iterations, rtol=0.0)
        residual = float((v - h @ found.value[0]).norm() / v.norm())
        assert found.residual == pytest.approx(residual, rel=1e-8)
        assert (found.iterations, found.converged) == (iterations, False)
    found = solve(lambda z: [h @ z[0]], [v], maxiter=100, rtol=1e-6)
    assert found.converged
    assert found.residual <= 1e-6
    assert found.iterations <= 20


@pytest.mark.promise("H7")
@pytest.mark.parametrize("order", [1, 2, 6])
def test_residual_of_the_series(order, spd):
    """The last term is what the terms before it leave of the system."""
    problem, h, _, v = spd()
    info = hg.neumann(problem, None, None, order=order, gamma=0.1).info
    powers = [torch.linalg.matrix_power(torch.eye(8) - 0.1 * h, j) @ v for j in range(order + 1)]
    left = v - 0.1 * h @ sum(powers[:-1])
    assert float(info.residual) == pytest.approx(float(left.norm() / v.norm()), rel=1e-10)


INDEFINITE = [[1.0, 0.0], [0.0, -2.0]]


@pytest.mark.promise("H7")
def test_negative_curvature_is_reported(quadratic):
    problem = quadratic((0.0, 5.0), hessian=INDEFINITE)
    info = hg.conjugate_gradient(problem, None, None).info
    assert info.negative_curvature
    assert not info.converged
    assert not hg.conjugate_gradient(quadratic(), None, None).info.negative_curvature
    damped = hg.conjugate_gradient(problem, None, None, damping=2.5).info
    assert damped.converged
    assert not damped.negative_curvature


def test_normal_equations_solve_an_indefinite_system(quadratic, distance):
    problem = quadratic((2.0, 5.0), hessian=INDEFINITE)
    solved = hg.conjugate_gradient(problem, None, None, normal_equations=True)
    assert distance(solved, hg.exact(problem, None, None)) <= 1e-12


@pytest.mark.promise("H7")
def test_growing_terms_are_refused(quadratic):
    problem = quadratic((0.0, 5.0), hessian=INDEFINITE)
    with pytest.raises(DivergenceError, match=r"a term may grow 10-fold, got .* at power \d"):
        hg.neumann(problem, None, None, order=10, gamma=0.5)
    free = hg.neumann(problem, None, None, order=10, gamma=0.5, max_growth=None)
    assert free[0].isfinite().all()
    hg.neumann(problem, None, None, order=10, gamma=0.5, damping=2.5)
    with pytest.raises(DivergenceError, match="a term may grow"):
        hg.neumann(quadratic(), None, None, order=10, gamma=1.0)


@pytest.mark.promise("H7")
def test_a_growing_residual_is_refused(spd):
    """An operator that is not symmetric: the residual grows without a negative curvature."""
    turn = torch.tensor([[1e-3, -1.0], [1.0, 1e-3]], dtype=torch.float64)
    with pytest.raises(DivergenceError, match="the residual may grow 10-fold"):
        solve(lambda z: [turn @ z[0]], [torch.ones(2).double()], maxiter=50)


def test_gamma_is_checked_against_the_spectrum(quadratic, spd):
    """The quadratic problem converges below 0.5528."""
    fine = hg.neumann(quadratic(), None, None, gamma=0.55, check_gamma=True)
    assert fine[0].isfinite().all()
    with pytest.raises(
        ConfigError, match=r"gamma must lie between 0 and 2 over .* 3.618, got 0.56"
    ):
        hg.neumann(quadratic(), None, None, gamma=0.56, check_gamma=True)
    _, h, *_ = spd(size=5)
    value = hg.largest_eigenvalue(lambda u: [h @ u[0]], [torch.ones(5).double()], iterations=300)
    assert float(value) == pytest.approx(float(torch.linalg.eigvalsh(h)[-1]), rel=1e-9)


@pytest.mark.parametrize("rho", [0.1, 1.0])
def test_all_columns_give_the_damped_solve(rho, spd, smooth, batch, distance):
    problem, *_ = spd(size=10)
    damped = hg.exact(problem, None, None, damping=rho)
    assert distance(hg.nystrom(problem, None, None, rank=10, rho=rho), damped) <= 1e-11
    order = list(range(9, -1, -1))
    assert distance(hg.nystrom(problem, None, None, columns=order, rho=rho), damped) <= 1e-11
    # Weights that the loss does not see have columns of zeros.
    _, problem = smooth()
    size = sum(w.numel() for w in problem.weights)
    damped = hg.exact(problem, batch(1), batch(2), damping=10.0)
    whole = hg.nystrom(problem, batch(1), batch(2), rank=size, rho=10.0)
    assert distance(whole, damped) <= 1e-9


NAMES = ("identity", "neumann", "conjugate_gradient", "unrolled", "finite_difference")


@pytest.mark.parametrize("name", [*NAMES, "nystrom", "exact", "first_order"])
def test_float32_is_close_to_float64(name, smooth, batch, distance):
    options = {
        "nystrom": {"columns": [1, 5, 9], "rho": 3.0},
        "exact": {"damping": 3.0},
        "conjugate_gradient": {"damping": 3.0},
    }.get(name, {})
    results = []
    for dtype in (torch.float32, torch.float64):
        _, problem = smooth(dtype)
        data = batch(1, dtype=dtype), batch(2, dtype=dtype)
        results.append(hg.ESTIMATORS[name](problem, *data, **options))
    assert results[0][0].dtype == torch.float32
    assert distance(*results) <= 1e-4


def test_memory_of_implicit_methods_does_not_know_the_steps_before(smooth, batch):
    """Numbers held at once, counted at every allocation that autograd saves."""
    peaks = []
    for steps in (1, 50):
        _, problem = smooth()
        optimizer = problem.weight_optimizer.optimizer
        for seed in range(steps):
            loss = problem.train_loss(batch(seed))
            gradients = torch.autograd.grad(loss, problem.weights)
            for weight, gradient in zip(problem.weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
        saved = [0]

        def pack(tensor, saved=saved):
            saved[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hg.neumann(problem, batch(1), batch(2), order=2)
        peaks.append(saved[0])
    assert peaks[0] == peaks[1]


def test_parts_and_norms_are_reported(quadratic):
    gradients = hg.exact(quadratic(), None, None)
    assert isinstance(gradients, tuple)
    assert gradients.direct[0].item() == pytest.approx(1.0)
    assert gradients.implicit[0].item() == pytest.approx(-0.3)
    assert float(gradients.info.direct_norm) == pytest.approx(1.0)
    assert float(gradients.info.implicit_norm) == pytest.approx(0.3)


def test_a_copy_keeps_the_parts(quadratic):
    gradients = hg.neumann(quadratic(), None, None)
    for copied in (copy.copy(gradients), copy.deepcopy(gradients)):
        assert torch.equal(copied[0], gradients[0])
        assert torch.equal(copied.implicit[0], gradients.implicit[0])
        assert copied.info.products == {"ww": 2, "aw": 1}


def test_nothing_to_solve_is_zero(quadratic):
    """The outer loss does not see the weights."""
    for name in ("conjugate_gradient", "neumann", "identity", "exact"):
        problem = quadratic()
        (alpha,) = problem.alphas
        problem.valid_loss = lambda _, alpha=alpha: alpha.square().sum()
        gradients = hg.ESTIMATORS[name](problem, None, None)
        assert gradients[0].item() == pytest.approx(1.0)
        residual = gradients.info.residual
        assert residual is None or not math.isnan(float(residual))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("neumann", {"order": -1}, "order must be an integer at least 0, got -1"),
        ("neumann", {"gamma": 0.0}, "gamma must be greater than 0, got 0.0"),
        ("conjugate_gradient", {"maxiter": 0}, "maxiter must be an integer at least 1, got 0"),
        ("nystrom", {"rank": 3}, "rank must be an integer at least 1 and at most 2, got 3"),
        ("nystrom", {"columns": [2]}, r"columns must lie between 0 and 1, got \[2\]"),
        ("nystrom", {"rank": 1, "rho": 0.0}, "rho must be greater than 0, got 0.0"),
        ("identity", {"hvp": "fd"}, "mode must be one of"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message, quadratic):
    with pytest.raises(ConfigError, match=message):
        hg.ESTIMATORS[name](quadratic(), None, None, **options)


def test_a_dense_solve_of_a_large_problem_is_refused():
    w, a = torch.ones(5000, requires_grad=True), torch.ones(1, requires_grad=True)
    losses = {"train_loss": lambda _: (w * a).sum(), "valid_loss": lambda _: w.sum()}
    with pytest.raises(ConfigError, match="weights must be at most 4096 numbers, got 5000"):
        hg.exact(hg.BilevelProblem(weights=[w], alphas=[a], **losses), None, None)


DAMPED = [
    lambda *batch: hg.neumann(*batch, order=2, gamma=0.05, damping=0.1),
    lambda *batch: hg.conjugate_gradient(*batch, maxiter=3, damping=0.1),
]


@pytest.mark.parametrize("estimate", DAMPED)
def test_damping_where_autograd_returns_one_tensor_twice(estimate):
    """Two weights that enter as their sum, and one number for all entries of a weight."""
    a = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    v, w = (torch.ones(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    problem = hg.BilevelProblem(
        weights=[v, w],
        alphas=[a],
        train_loss=lambda batch: (v + w - a).square().sum() + (w.sum() - a).square().sum(),
        valid_loss=lambda batch: (v * w).sum(),
        weight_optimizer=torch.optim.SGD([v, w], lr=0.1),
    )
    apart = hg.BilevelProblem(
        weights=[v, w],
        alphas=[a],
        train_loss=lambda batch: (
            (1 * v + 1 * w - a).square().sum() + ((w * torch.ones_like(w)).sum() - a).square().sum()
        ),
        valid_loss=lambda batch: (v * w).sum(),
        weight_optimizer=torch.optim.SGD([v, w], lr=0.1),
    )
    want, got = (estimate(each, None, None)[0] for each in (apart, problem))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_weights_of_two_dtypes():
    a = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    found = []
    for dtype in (torch.float64, torch.float32):
        v = torch.ones(2, dtype=dtype, requires_grad=True)
        w = torch.ones(3, dtype=torch.float64, requires_grad=True)
        problem = hg.BilevelProblem(
            weights=[v, w],
            alphas=[a],
            train_loss=lambda batch, v=v, w=w: (
                (v.double() - a).square().sum() + (2 * w - a + v.double().sum()).square().sum()
            ),
            valid_loss=lambda batch, v=v, w=w: (v.double().sum() * w).sum(),
        )
        found.append(hg.conjugate_gradient(problem, None, None, maxiter=10, rtol=1e-6)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
