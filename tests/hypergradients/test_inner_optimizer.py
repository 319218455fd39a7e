"""A step of the weights' optimizer that is not taken, and its derivative."""

import copy

import pytest
import torch

from pyfast_nas import hypergradients as hg
from pyfast_nas.errors import ConfigError

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS = {
    "plain": (SGD, {"lr": 0.1}),
    "decay": (SGD, {"lr": 0.1, "weight_decay": 0.03}),
    "heavy ball": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "dampening": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "Nesterov": (SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02}),
    "uphill": (SGD, {"lr": 0.1, "momentum": 0.5, "maximize": True, "weight_decay": 0.02}),
    "rate in a tensor": (SGD, {"lr": torch.tensor(0.05), "momentum": 0.9, "weight_decay": 0.1}),
    "Adam, rate in a tensor": (ADAM, {"lr": torch.tensor(0.05, dtype=torch.float64)}),
    "Adam": (ADAM, {"lr": 0.05, "betas": (0.7, 0.95)}),
    "Adam with decay": (ADAM, {"lr": 0.05, "weight_decay": 0.1, "eps": 1e-3}),
    "AdamW": (ADAMW, {"lr": 0.05, "weight_decay": 0.1}),
}


@pytest.fixture(params=OPTIMIZERS)
def made(request):
    """Two weights and their optimizer, new or after three steps."""
    kind, options = OPTIMIZERS[request.param]

    def make(steps):
        torch.manual_seed(1)
        weights = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (3, 2)]
        optimizer = kind(weights, **options)
        for _ in range(steps):
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()
        return weights, optimizer

    return make


def gradients_of(weights, seed=5):
    torch.manual_seed(seed)
    return [torch.randn_like(w) for w in weights]


@pytest.mark.parametrize("steps", [0, 3])
def test_step_is_the_optimizers(made, steps):
    weights, optimizer = made(steps)
    gradients = gradients_of(weights)
    before = copy.deepcopy(optimizer.state_dict())
    new, _ = hg.InnerOptimizer(optimizer, weights).step([w.detach() for w in weights], gradients)
    assert str(optimizer.state_dict()) == str(before)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    for got, want in zip(new, weights, strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("steps", [0, 3])
def test_pull_is_the_transposed_derivative_of_the_step(made, steps):
    weights, optimizer = made(steps)
    inner = hg.InnerOptimizer(optimizer, weights)
    at, gradients, adjoint = [w.detach() for w in weights], gradients_of(weights), None
    adjoint = gradients_of(weights, 6)
    _, pull = inner.step(at, gradients)
    pulled = pull(adjoint)
    for place, gradient in enumerate(gradients):
        for entry in range(gradient.numel()):
            steps_to = []
            for sign in (1, -1):
                moved = [g.clone() for g in gradients]
                moved[place][entry] += sign * 1e-6
                new, _ = inner.step(at, moved)
                steps_to.append(sum((n * a).sum() for n, a in zip(new, adjoint, strict=True)))
            slope = float(steps_to[0] - steps_to[1]) / 2e-6
            assert pulled[place][entry].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)


FACTORS = [
    ({"momentum": 0.9}, True, -0.1),
    ({"momentum": 0.9, "dampening": 0.25}, True, -0.1 * 0.75),
    ({"momentum": 0.9, "dampening": 0.25}, False, -0.1),
    ({"momentum": 0.8, "nesterov": True}, True, -0.1 * 1.8),
]


@pytest.mark.parametrize(("options", "existed", "factor"), FACTORS)
def test_factor_of_each_form_of_momentum(options, existed, factor):
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = SGD([weight], lr=0.1, **options)
    if existed:
        optimizer.state[weight]["momentum_buffer"] = torch.ones(2, dtype=torch.float64)
    _, pull = hg.InnerOptimizer(optimizer, [weight]).step(
        [weight.detach()], [torch.ones_like(weight)]
    )
    assert pull([torch.ones(2, dtype=torch.float64)])[0].tolist() == pytest.approx([factor] * 2)


@pytest.mark.parametrize("steps", [0, 2])
def test_adam_is_differentiable_where_a_gradient_was_always_zero(steps):
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = ADAM([weight], lr=0.1)
    for _ in range(steps):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    zero = [torch.zeros(2, dtype=torch.float64)]
    _, pull = hg.InnerOptimizer(optimizer, [weight]).step([weight.detach()], zero)
    assert pull([torch.ones(2, dtype=torch.float64)])[0].isfinite().all()


def test_groups_of_weights_keep_their_settings():
    first, second = (torch.ones(1, requires_grad=True) for _ in range(2))
    optimizer = SGD([{"params": [second], "lr": 0.5}, {"params": [first]}], lr=0.1)
    inner = hg.InnerOptimizer(optimizer, [first, second])
    new, pull = inner.step([first.detach(), second.detach()], [torch.ones(1)] * 2)
    assert [n.item() for n in new] == pytest.approx([0.9, 0.5])
    assert [p.item() for p in pull([torch.ones(1)] * 2)] == pytest.approx([-0.1, -0.5])
    with pytest.raises(ConfigError, match=r"lr must be one number .* got \[0.1, 0.5\]"):
        _ = inner.learning_rate


def test_other_optimizers_are_refused():
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(ConfigError, match=r"must be torch\.optim\.SGD, Adam or AdamW, got"):
        hg.InnerOptimizer(torch.optim.RMSprop([weight]), [weight])
    with pytest.raises(ConfigError, match=r"weights\[0\] must be in the optimizer, got one of"):
        hg.InnerOptimizer(SGD([weight]), [torch.ones(2, requires_grad=True)])
    inner = hg.InnerOptimizer(ADAM([weight], amsgrad=True), [weight])
    with pytest.raises(ConfigError, match="amsgrad must be off, got True"):
        inner.step([weight.detach()], [torch.ones(1)])
