"""Hypergradients of plain functions and of modules."""

import importlib
import inspect

import pytest
import torch
from torch import nn

from pyfast_nas import hypergradients as hg
from pyfast_nas.errors import ConfigError

DOUBLE = torch.float64
METHODS = {
    "conjugate_gradient": {"damping": 0.0},
    "exact": {},
    "first_order": {},
    "identity": {"scale": 0.2},
    "neumann": {"gamma": 0.2, "order": 3},
    "nystrom": {"columns": [0, 2], "rho": 1.0},
    "unrolled": {},
    "finite_difference": {},
}


def flat_problem():
    """Three weights and two parameters in one tensor each."""
    torch.manual_seed(0)
    root = torch.randn(3, 3, dtype=DOUBLE)
    h, g = root @ root.T + torch.eye(3, dtype=DOUBLE), torch.randn(3, 2, dtype=DOUBLE)

    def inner(w, a):
        return 0.5 * w @ h @ w + w @ (g @ a)

    def outer(w, a):
        return (w - 1).square().sum() + a.pow(3).sum()

    return outer, inner, torch.randn(3, dtype=DOUBLE), torch.randn(2, dtype=DOUBLE)


@pytest.mark.parametrize("method", METHODS)
def test_trees_scalars_strides_and_empty_tensors(method):
    """The same numbers in another shape give the same gradients in that shape."""
    outer, inner, w, a = flat_problem()
    options = METHODS[method]
    plain_w, plain_a = w.clone(), a.clone()

    def sgd(tensors):
        return torch.optim.SGD(tensors, lr=0.1, momentum=0.5)

    want = hg.hypergradient(
        outer, inner, plain_w, plain_a, method=method, inner_optimizer=sgd([plain_w]), **options
    )
    wide = torch.zeros(2, 2, dtype=DOUBLE)
    wide[:, 0] = w[:2]
    params = {"a": [wide[:, 0], torch.empty(0, 3, dtype=DOUBLE)], "b": (w[2].clone(),)}
    hparams = [a[0].clone(), {"deep": a[1:].expand(1), "empty": torch.empty(0, dtype=DOUBLE)}]

    def joined(tree):
        return lambda p, h: tree(
            torch.cat([p["a"][0], p["b"][0].view(1), p["a"][1].view(-1)]),
            torch.cat([h[0].view(1), h[1]["deep"], h[1]["empty"]]),
        )

    leaves = [*params["a"], *params["b"]]
    got = hg.hypergradient(
        joined(outer),
        joined(inner),
        params,
        hparams,
        method=method,
        inner_optimizer=sgd(leaves),
        **options,
    )
    for part in ("grads", "direct", "implicit"):
        tree, flat = getattr(got, part), getattr(want, part)
        assert tree[0].shape == ()
        assert tree[1]["empty"].shape == (0,)
        torch.testing.assert_close(torch.cat([tree[0].view(1), tree[1]["deep"]]), flat)
    torch.testing.assert_close(got.grads[0], got.direct[0] + got.implicit[0])
    assert torch.equal(wide[:, 0], w[:2])


def test_values_of_the_quadratic_problem(quadratic):
    """The plain entry gives what the estimators give."""
    problem = quadratic()
    (w,), (a,) = problem.weights, problem.alphas
    h = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=DOUBLE)
    b, c = (torch.tensor(x, dtype=DOUBLE) for x in ([1.0, -1.0], [0.0, 1.0]))
    result = hg.hypergradient(
        lambda w, a: 0.5 * (w - 1).square().sum() + a.square().sum(),
        lambda w, a: 0.5 * w @ h @ w + w @ (b * a + c),
        w,
        a,
    )
    assert result.grads.item() == pytest.approx(0.7, abs=1e-10)
    assert result.info.converged
    assert result.info.products == {"ww": 2, "aw": 1}


def test_an_unused_hyperparameter_has_gradient_zero():
    outer, inner, w, a = flat_problem()
    hparams = {"used": a, "idle": torch.ones(2, 2)}
    losses = [lambda w, h, loss=loss: loss(w, h["used"]) for loss in (outer, inner)]
    for method, options in METHODS.items():
        if method in ("unrolled", "finite_difference"):
            options = {"inner_optimizer": torch.optim.SGD([w], lr=0.1)}
        grads = hg.hypergradient(*losses, w, hparams, method=method, **options).grads
        assert torch.equal(grads["idle"], torch.zeros(2, 2))
        assert grads["used"].any()
        with pytest.raises(ConfigError, match=r"got none of number \d, of shape \[2, 2\]"):
            hg.hypergradient(*losses, w, hparams, method=method, strict=True, **options)
    hg.hypergradient(outer, inner, w, a, strict=True)


def test_gradients_are_written_as_asked():
    outer, inner, w, a = flat_problem()
    a.requires_grad_()
    grads = hg.hypergradient(outer, inner, w, a).grads
    assert a.grad is None
    hg.hypergradient(outer, inner, w, a, accumulate=True)
    assert torch.equal(a.grad, grads)
    hg.hypergradient(outer, inner, w, a, accumulate=True)
    assert torch.equal(a.grad, 2 * grads)
    hg.hypergradient(outer, inner, w, a, accumulate=False)
    assert torch.equal(a.grad, grads)
    assert w.grad is None


def test_an_estimator_of_ones_own_serves():
    outer, inner, w, a = flat_problem()

    def own(problem, train, valid):
        return problem.gradients("valid", valid, problem.alphas)

    result = hg.hypergradient(outer, inner, w, a, method=own)
    assert torch.equal(result.grads, hg.hypergradient(outer, inner, w, a, method="first_order")[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "newton"}, ConfigError, "method must be one of conjugate_gradient, exact,"),
        ({"hparams": {}}, ConfigError, "hparams must hold at least one tensor, got {}"),
        ({"params": []}, ConfigError, r"params must hold at least one tensor, got \[\]"),
        ({"hparams": 0.5}, TypeError, "hparams must hold floating-point tensors, got float"),
        ({"params": torch.ones(3, dtype=torch.int64)}, TypeError, r"got torch\.int64"),
        ({"rank": 3}, TypeError, "unexpected keyword argument 'rank'"),
        ({"method": "neumann"}, ConfigError, "weight_optimizer must be given"),
    ],
)
def test_refusals(change, error, message):
    outer, inner, w, a = flat_problem()
    call = {"params": w, "hparams": a} | change
    with pytest.raises(error, match=message):
        hg.hypergradient(outer, inner, call.pop("params"), call.pop("hparams"), **call)


def test_a_module_and_two_batches(smooth, batch):
    model, problem = smooth(norm=True)
    optimizer = problem.weight_optimizer.optimizer
    before = [p.grad for p in problem.weights]
    want = hg.finite_difference(problem, batch(1), batch(2))
    got = hg.module_hypergradient(
        model,
        batch(1),
        batch(2),
        hparams=[model.alpha],
        method="finite_difference",
        inner_optimizer=optimizer,
        accumulate=True,
    )
    assert torch.equal(got.grads[0], want[0])
    assert torch.equal(model.alpha.grad, want[0])
    assert all(p.grad is g for p, g in zip(problem.weights, before, strict=True))


def test_the_outer_loss_of_a_module_may_be_another(smooth, batch):
    model, _ = smooth()
    scaled = hg.module_hypergradient(
        model,
        batch(1),
        batch(2),
        hparams=[model.alpha],
        valid_loss=lambda y, t: 3 * nn.functional.cross_entropy(y, t),
        method="first_order",
    )
    plain = hg.module_hypergradient(
        model, batch(1), batch(2), hparams=[model.alpha], method="first_order"
    )
    torch.testing.assert_close(scaled.grads[0], 3 * plain.grads[0])


def test_frozen_parameters_are_no_weights(batch):
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    model[0].weight.requires_grad_(False)
    problem = hg.BilevelProblem.of_module(model, alphas=[model[1].bias])
    assert [id(w) for w in problem.weights] == [id(model[0].bias), id(model[1].weight)]
    hg.conjugate_gradient(problem, batch(1), batch(2), damping=3.0)
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize("name", sorted(hg.ESTIMATORS))
def test_every_estimator_has_its_file_its_name_and_the_signature(name):
    estimator = hg.ESTIMATORS[name]
    module = importlib.import_module(f"pyfast_nas.hypergradients.{name}")
    assert getattr(module, name) is estimator
    assert getattr(hg, name) is estimator
    first, *options = inspect.signature(estimator).parameters.values()
    assert [first.name, *(o.name for o in options[:2])] == ["problem", "train", "valid"]
    assert all(o.kind is o.KEYWORD_ONLY and o.default is not o.empty for o in options[2:])
