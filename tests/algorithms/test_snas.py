"""SNAS: the concrete distribution, the schedule, the single step, the cost of resources."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyfast_nas import ops, spaces
from pyfast_nas.algorithms import SNAS
from pyfast_nas.algorithms.snas import concrete_log_density, concrete_log_sample
from pyfast_nas.costs import ResourceCost
from pyfast_nas.errors import ConfigError
from pyfast_nas.nn import GateOutput

STAGED = spaces.NASBench201(channels=4, cells=1, image_size=8, num_classes=3, in_channels=1)
LOGITS = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64)
SEED = torch.tensor([20, 26])


def noise(rows: int, columns: int) -> Tensor:
    return ops.gumbel_noise(SEED, rows, columns).double()


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_jacobian_of_the_sample_is_the_printed_one(tau: float) -> None:
    g = noise(1, 4)[0]
    z = concrete_log_sample(LOGITS, g, tau).exp()
    jacobian = torch.func.jacrev(lambda x: concrete_log_sample(x, g, tau).exp())(LOGITS)
    assert (jacobian - (torch.diag(z) - torch.outer(z, z)) / tau).abs().max() < 1e-15


@pytest.mark.parametrize("tau", [5.0, 1.0, 0.1, 0.03])
def test_largest_weights_are_as_frequent_as_the_softmax_says(tau: float) -> None:
    draws = 100_000
    sample = concrete_log_sample(LOGITS.expand(draws, 4), noise(draws, 4), tau)
    counts = torch.bincount(sample.argmax(1), minlength=4)
    expected = draws * LOGITS.softmax(0)
    assert ((counts - expected) ** 2 / expected).sum() < 30.66  # 3 d.o.f., level 1e-6


def test_sample_is_one_hot_as_the_temperature_vanishes() -> None:
    sample = concrete_log_sample(LOGITS.expand(1000, 4), noise(1000, 4), 1e-6).exp()
    assert torch.equal(
        sample.sort(1).values.round(decimals=6)[:, :3], torch.zeros(1000, 3).double()
    )
    assert (sample.max(1).values > 0.999999).float().mean() > 0.999


def test_sample_is_uniform_at_infinite_temperature() -> None:
    sample = concrete_log_sample(LOGITS.expand(1000, 4), noise(1000, 4), 1e9).exp()
    torch.testing.assert_close(sample, torch.full_like(sample, 0.25), rtol=1e-7, atol=0)


def test_density_has_the_known_value() -> None:
    z = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assert concrete_log_density(z.log(), LOGITS, 0.5).item() == pytest.approx(
        -0.029181681, abs=5e-10
    )


def test_density_of_a_shorter_row_ignores_what_is_missing() -> None:
    short = concrete_log_sample(LOGITS[:3], noise(1, 3)[0], 0.7)
    padded = [F.pad(t, (0, 1), value=-torch.inf) for t in (short, LOGITS[:3])]
    found = concrete_log_density(*padded, 0.7)
    torch.testing.assert_close(found, concrete_log_density(short, LOGITS[:3], 0.7))


def over_the_simplex(tau: float, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points of two candidates, their densities, and widths of the trapezoidal rule."""
    t = torch.linspace(-80, 80, 40_001, dtype=torch.float64)
    log_z = torch.stack([F.logsigmoid(t), F.logsigmoid(-t)], dim=1)
    density = concrete_log_density(log_z, logits.expand_as(log_z), tau).exp()
    return log_z, density, (t[1] - t[0]) * log_z.sum(1).exp()


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
def test_density_integrates_to_one(tau: float) -> None:
    _, density, width = over_the_simplex(tau, torch.tensor([0.4, -0.7], dtype=torch.float64))
    assert (density * width).sum().item() == pytest.approx(1.0, abs=1e-9)


def gradient_by_score(cost, tau: float, logits: Tensor) -> Tensor:
    """The exact expectation of the score times the cost, by quadrature."""
    logits = logits.clone().requires_grad_()
    log_z, density, width = over_the_simplex(tau, logits.detach())
    mass = density * width * cost(log_z.exp())
    scores = concrete_log_density(log_z, logits.expand_as(log_z), tau)
    return torch.autograd.grad(scores, logits, mass)[0]


def gradient_by_sample(cost, tau: float, logits: Tensor) -> Tensor:
    """The exact expectation of the gradient through the sample, by quadrature."""
    logits = logits.clone().requires_grad_()
    # Two Gumbel variables differ by a logistic one.
    t = torch.linspace(-80, 80, 40_001, dtype=torch.float64)
    mass = (t[1] - t[0]) * torch.sigmoid(t) * torch.sigmoid(-t)
    z = ((logits + F.pad(t.unsqueeze(1), (0, 1))) / tau).softmax(1)
    return torch.autograd.grad((mass * cost(z)).sum(), logits)[0]


def test_credit_of_an_edge_is_its_own_contribution() -> None:
    """Where the loss is linear in the weights, both gradients have one expectation."""
    c = torch.tensor([1.5, -2.0], dtype=torch.float64)
    logits = torch.tensor([0.4, -0.7], dtype=torch.float64)
    found = [g(lambda z: z @ c, 0.6, logits) for g in (gradient_by_score, gradient_by_sample)]
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)
    assert found[0].abs().min() > 0.1


def test_credit_of_an_edge_is_its_own_contribution_among_three_candidates() -> None:
    c = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    logits = LOGITS[:3].clone().requires_grad_()
    draws, tau = 200_000, 0.8
    log_z = concrete_log_sample(logits.expand(draws, 3), noise(draws, 3), tau)
    z, reward = log_z.exp(), log_z.detach().exp() @ c
    by_sample = z.detach() * (c - reward.unsqueeze(1)) / tau
    each = logits.detach().expand(draws, 3).clone().requires_grad_()
    (by_score,) = torch.autograd.grad(concrete_log_density(log_z.detach(), each, tau), each, reward)
    spread = ((by_sample - by_score).std(0) / draws**0.5).detach()
    assert ((by_sample - by_score).mean(0).abs() < 4.5 * spread).all()
    assert (by_sample.mean(0).abs() > 20 * spread).all(), "zero would be found wrong"


def test_policy_gradient_of_any_cost_is_unbiased() -> None:
    logits = torch.tensor([0.4, -0.7], dtype=torch.float64)
    c = torch.tensor([3.0, 40.0], dtype=torch.float64)
    found = [
        g(lambda z: (z @ c).clamp(min=1).log(), 0.5, logits)
        for g in (gradient_by_score, gradient_by_sample)
    ]
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)


def test_temperature_has_the_printed_values(start) -> None:
    algorithm = start(SNAS(), epochs=150, steps_per_epoch=1)
    found = []
    for epoch in (0, 1, 75, 149):
        algorithm.steps = epoch
        found.append(algorithm.tau)
    assert found == pytest.approx([1, 0.9935, 0.515, 0.0365], abs=5e-5)


def test_temperature_falls_over_the_epochs_there_are(start) -> None:
    algorithm = start(SNAS(), epochs=4, steps_per_epoch=1)
    algorithm.steps = 2
    assert algorithm.tau == pytest.approx(0.515, rel=1e-12)


def test_logits_start_where_the_code_starts_them(start) -> None:
    first = start(SNAS(), spaces.DARTS(channels=2, cells=2))
    alphas = torch.cat(list(first.alphas.values()))
    assert alphas.numel() == 224
    assert alphas.mean().item() == pytest.approx(1.0, abs=5 * 0.01 / 224**0.5)
    assert alphas.std().item() == pytest.approx(0.01, rel=0.25)
    again = start(SNAS(), spaces.DARTS(channels=2, cells=2))
    assert all(torch.equal(again.alphas[t], a) for t, a in first.alphas.items())
    other = start(SNAS(), spaces.DARTS(channels=2, cells=2), seed=1)
    assert not any(torch.equal(other.alphas[t], a) for t, a in first.alphas.items())


def test_a_missing_candidate_keeps_its_zero_and_has_no_weight(start, tiny_batch) -> None:
    algorithm = start(SNAS())
    for step in range(3):
        algorithm.step(tiny_batch(step), tiny_batch(step))
    assert algorithm.alphas["cell"][1, 2] == 0
    assert algorithm.probabilities()["cell"][1, 2] == 0


def test_one_forward_and_one_backward_pass_give_both_gradients(
    start, toy_batch, monkeypatch
) -> None:
    algorithm = start(SNAS(), spaces.Toy())
    calls = {"forward": 0, "backward": 0}
    run = torch.autograd._engine_run_backward
    mix = algorithm.supernet.mix

    def backward(*args, **kwargs):
        calls["backward"] += 1
        return run(*args, **kwargs)

    def forward(*args):
        calls["forward"] += 1
        return mix(*args)

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", backward)
    monkeypatch.setattr(algorithm.supernet, "mix", forward)
    weights = [weight.clone() for weight in algorithm.weights]
    alphas = algorithm.alphas["cell"]
    algorithm.step(toy_batch(), toy_batch())
    assert calls == {"forward": 1, "backward": 1}
    assert not any(map(torch.equal, weights, algorithm.weights))
    assert not torch.equal(algorithm.alphas["cell"], alphas)


def test_step_is_the_printed_one(start, image_batch) -> None:
    """Three steps against the algorithm written with nothing but torch."""
    algorithm = start(SNAS(tau_max=2.0), STAGED, epochs=3, steps_per_epoch=1)
    net = copy.deepcopy(algorithm.supernet)
    draws = torch.Generator()
    draws.set_state(algorithm.generator.get_state())
    sgd = torch.optim.SGD(
        net.weight_parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4, foreach=True
    )
    adam = torch.optim.Adam(
        net.arch_parameters(), lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, foreach=True
    )
    for step in range(3):
        train = image_batch(step)
        sgd.param_groups[0]["lr"] = algorithm_rate = 0.001 + 0.012 * (
            1 + torch.tensor(step / 3 * torch.pi).cos().item()
        )
        gumbel = ops.gumbel_noise(ops.draw_seed(draws), 6, 5)
        tau = 0.03 + (1 - step / 3) * 1.97
        z = ((net.alphas["cell"] + gumbel) / tau).softmax(1)
        sgd.zero_grad()
        adam.zero_grad()
        F.cross_entropy(net(train[0], {"cell": GateOutput(z)}), train[1]).backward()
        torch.nn.utils.clip_grad_norm_(net.weight_parameters(), 5.0)
        torch.nn.utils.clip_grad_norm_(net.arch_parameters(), 10.0)
        sgd.step()
        adam.step()
        metrics = algorithm.step(train, image_batch(99))
        assert metrics["tau"] == pytest.approx(tau)
        rate = algorithm.weight_optimizer.param_groups[0]["lr"]
        assert rate == pytest.approx(algorithm_rate, rel=1e-6)
    for mine, theirs in zip(algorithm.supernet.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_validation_batch_is_not_looked_at(start, image_batch, freeze) -> None:
    ends = []
    for other in (1, 2):
        algorithm = start(SNAS(), STAGED)
        algorithm.step(image_batch(0), image_batch(other))
        ends.append(freeze(algorithm.supernet.state_dict()))
    assert ends[0] == ends[1]


def test_step_leaves_the_global_generator_alone(start, image_batch) -> None:
    algorithm = start(SNAS(), STAGED)
    before = torch.get_rng_state()
    algorithm.step(image_batch(0), image_batch(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_architecture_gradient_is_clipped(start, image_batch) -> None:
    algorithm = start(SNAS(alpha_clip=1e-3, tau_max=0.1), STAGED)
    assert algorithm.step(image_batch(0), image_batch(1))["alpha/gradient_norm"] <= 1.0001e-3


def test_failing_step_moves_nothing(start, image_batch, monkeypatch, freeze) -> None:
    algorithm = start(SNAS(), STAGED)
    before = freeze(algorithm.supernet.state_dict())
    monkeypatch.setattr(algorithm, "loss", lambda *_: torch.zeros(2, requires_grad=True))
    with pytest.raises(ValueError, match="must return a tensor of shape"):
        algorithm.step(image_batch(0), image_batch(1))
    assert freeze(algorithm.supernet.state_dict()) == before


FORMS = ("discrete", "reparametrization", "policy_gradient")


@pytest.mark.parametrize("form", ["log", "linear"])
@pytest.mark.parametrize("estimator", FORMS)
def test_resources_pull_the_logits(
    estimator: str, form: str, start, image_batch, monkeypatch
) -> None:
    """Beside a loss of nothing only the cost moves them, towards less of it."""
    options = {"resource_weight": 1.0, "resource_cost": estimator, "resource_form": form}
    algorithm = start(SNAS(alpha_lr=0.05, alpha_decay=0.0, **options), STAGED, steps_per_epoch=200)
    nothing = torch.zeros((), requires_grad=True)
    monkeypatch.setattr(algorithm, "_evaluate", lambda *_: (nothing * 1, None, {}))
    cost = ResourceCost(algorithm.supernet, (1, 1, 8, 8), form=form)
    before = sum(c.sum() for c in cost(algorithm.probabilities()).values())
    for _ in range(100):
        metrics = algorithm.step(image_batch(0), image_batch(0))
    assert metrics["resource"] > 0
    # The score of a sample is noisy, and no baseline is subtracted.
    share = 0.98 if estimator == "policy_gradient" else 0.8
    assert sum(c.sum() for c in cost(algorithm.probabilities()).values()) < share * before


def test_policy_gradient_credits_each_edge_with_its_own_cost(start) -> None:
    options = {"resource_weight": 1.0, "resource_cost": "policy_gradient"}
    algorithm = start(SNAS(**options), STAGED)
    algorithm.start_step()
    logits = algorithm.supernet.logits()
    log_sample = algorithm._draw(logits)
    surrogate, value = algorithm._resource_loss(logits, log_sample)
    (found,) = torch.autograd.grad(surrogate, algorithm.alpha_parameters)
    costs = algorithm.resources({"cell": log_sample["cell"].exp()})["cell"].detach()
    for row in range(6):
        alone = logits["cell"][row].detach().requires_grad_()
        density = concrete_log_density(log_sample["cell"][row].detach(), alone, algorithm.tau)
        (score,) = torch.autograd.grad(density, alone)
        torch.testing.assert_close(found[row], score * costs[row], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(value, costs.sum())


def test_without_a_weight_resources_are_not_counted(start) -> None:
    assert start(SNAS(), STAGED).resources is None


def test_space_without_images_has_no_resources(start) -> None:
    with pytest.raises(ConfigError, match=r"resource_weight .*'toy', has no images"):
        start(SNAS(resource_weight=0.1), spaces.Toy())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau_min": 2.0}, "tau_min must be at most tau_max=1, got 2"),
        ({"resource_form": "linear"}, "resource_weight must be greater than 0"),
        ({"resource_cost": "policy_gradient"}, "resource_weight must be greater than 0"),
    ],
)
def test_options_that_do_not_fit_together(options, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SNAS(**options)


def test_derived_cell_keeps_all_edges_whose_best_candidate_is_not_none(start) -> None:
    algorithm = start(SNAS(), STAGED)
    best = [0, 3, 2, 0, 4, 1]
    with torch.no_grad():
        algorithm.supernet.alphas["cell"].copy_(torch.eye(5)[best])
    names = STAGED.candidates["cell"][0]
    assert [edge.op for edge in algorithm.derive().cells["cell"]] == [names[k] for k in best]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_no_infinite_noise(dtype, start) -> None:
    """In bfloat16 one uniform in 512 is 1, whose noise would be infinite."""
    sample = start(SNAS(), STAGED)._draw({"cell": torch.zeros(4000, 5, dtype=dtype)})["cell"]
    assert sample.isfinite().all()
    torch.testing.assert_close(sample.exp().sum(1), torch.ones(4000))


@pytest.mark.parametrize(
    "options", [{}, {"resource_weight": 1.5e-3, "resource_cost": "policy_gradient"}]
)
def test_a_supernet_in_half_precision(options, start, image_batch) -> None:
    algorithm = start(SNAS(**options), STAGED)
    algorithm.supernet.bfloat16()
    images, labels = image_batch(0)
    metrics = algorithm.step((images.bfloat16(), labels), (images, labels))
    assert all(torch.as_tensor(value).isfinite() for value in metrics.values())
    assert algorithm.alphas["cell"].isfinite().all()
