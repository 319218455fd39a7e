"""UNAS: what each of its passes runs, its two losses, its costs, its schedules."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyfast_nas import spaces
from pyfast_nas.algorithms import UNAS
from pyfast_nas.algorithms.rebar import coupled_draw
from pyfast_nas.algorithms.sub_graphs import single_path_gates, unstack_tables
from pyfast_nas.costs import CostTable, DrawnNetwork
from pyfast_nas.errors import ConfigError, DataError
from pyfast_nas.spaces.choices import choices_of
from tests.algorithms.test_toy import run

NOW = {"alpha_warmup": 0.0}
PRICED = NOW | {"cost_warmup": 0.0}
STEPS = torch.tensor(  # what a pair of candidates costs: no sum over rows, no derivative
    [[3.0, 0.0, 1.0, 2.0], [-2.0, 5.0, 0.0, 0.0], [1.0, -4.0, 2.0, 1.0], [0.0, 1.0, 0.5, -3.0]]
)
SMALL = {"channels": 4, "cells": 1, "image_size": 8, "num_classes": 3, "in_channels": 1}
IMAGES = spaces.NASBench201(**SMALL)


def step_price(genotype) -> float:
    names = spaces.toy.TOY_OPERATIONS
    return float(STEPS[tuple(names.index(edge.op) for edge in genotype.cells["cell"])])


def gradients_of(algorithm, monkeypatch, *batches) -> list[torch.Tensor]:
    """The gradients of the architecture's steps, which move nothing."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(algorithm, "_update_alphas", lambda g: seen.append(g[0]) or {})
    for train, valid in batches:
        algorithm.start_step()
        algorithm._architecture_step(train, valid)
    return seen


class Passes:
    """What a supernet was asked to run, pass by pass."""

    def __init__(self, supernet, monkeypatch) -> None:
        self.seen: list[dict] = []
        mix, weights = supernet.mix, supernet.weight_parameters()

        def recorded(x, gates):
            learns = [weight.requires_grad for weight in weights]
            self.seen.append(
                {"x": x, "gate": gates["cell"], "grad": torch.is_grad_enabled(), "learns": learns}
            )
            return mix(x, gates)

        monkeypatch.setattr(supernet, "mix", recorded)


def test_passes_of_a_step(start, tiny_batch, monkeypatch):
    algorithm = start(UNAS(**NOW))
    passes = Passes(algorithm.supernet, monkeypatch)
    train, valid = tiny_batch(0), tiny_batch(1)
    algorithm.step(train, valid)
    assert [p["x"] is train[0] for p in passes.seen] == [True, False, True, False, True]
    assert [p["grad"] for p in passes.seen] == [False, False, True, True, True]
    # Fused operators compute what requires a gradient: in the architecture's passes no weight does.
    assert [any(p["learns"]) for p in passes.seen] == [False] * 4 + [True]
    assert all(passes.seen[-1]["learns"])
    drawn, _, relaxed, _, weights = (p["gate"] for p in passes.seen)
    # L(z): one candidate of each row, by the arg-max; c: all of them, with a gradient.
    assert all(p["gate"].active == drawn.active for p in passes.seen[:2])
    assert [len(row) for row in drawn.active] == [1, 1]
    assert relaxed.active is None and relaxed.weights.requires_grad
    assert [(pick,) for pick in relaxed.weights.argmax(1).tolist()] == list(drawn.active)
    # The weights see relaxed choices of another draw, through which no gradient goes back.
    assert weights.active is None and not weights.weights.requires_grad
    torch.testing.assert_close(weights.weights.sum(1), torch.ones(2))
    assert (weights.weights[0] > 0).all() and weights.weights[1, 2] == 0
    assert not torch.equal(weights.weights, relaxed.weights)


def test_weights_of_every_candidate_are_trained(start, tiny_batch):
    algorithm = start(UNAS(**NOW))
    algorithm.step(tiny_batch(0), tiny_batch(1))
    assert all(weight.grad is not None for weight in algorithm.weights)


def test_weight_step_is_adam_on_the_relaxed_network(start, tiny_batch, monkeypatch):
    algorithm = start(UNAS(alpha_warmup=1.0, gradient_clip=1e9))
    passes = Passes(algorithm.supernet, monkeypatch)
    before = [weight.detach().clone() for weight in algorithm.weights]
    algorithm.step(tiny_batch(0), tiny_batch(1))
    assert len(passes.seen) == 1, "the architecture rests"
    for weight, old in zip(algorithm.weights, before, strict=True):
        gradient = weight.grad + 3e-4 * old
        # The first step of Adam goes one rate along the sign.
        want = old - 3e-4 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(weight.detach(), want, rtol=0, atol=1e-7)


class TestGap:
    def objective(self, algorithm, train, valid):
        draw = algorithm._draw(algorithm._logits(), 0)
        value, metrics = algorithm._objective(train, valid, algorithm._relaxed_gates(draw.relaxed))
        losses = [
            F.cross_entropy(
                algorithm.supernet(x, algorithm._relaxed_gates(draw.relaxed)), y, reduction="none"
            )
            for x, y in (train, valid)
        ]
        return value, metrics["gap"], losses

    @pytest.fixture
    def deterministic(self, start):
        def make(**options):
            algorithm = start(UNAS(**options))
            algorithm.supernet.eval()
            return algorithm

        return make

    def test_batch(self, deterministic, tiny_batch):
        algorithm = deterministic(gap_weight=0.7)
        value, gap, (train, valid) = self.objective(algorithm, tiny_batch(0), tiny_batch(1))
        want = (valid.mean() - train.mean()).abs()
        torch.testing.assert_close(gap, want.detach())
        torch.testing.assert_close(value, train.mean() + 0.7 * want)

    def test_samplewise(self, deterministic, tiny_batch):
        algorithm = deterministic(gap="samplewise")
        value, gap, (train, valid) = self.objective(algorithm, tiny_batch(0), tiny_batch(1))
        want = (valid - train).abs().mean()
        torch.testing.assert_close(gap, want.detach())
        torch.testing.assert_close(value, train.mean() + 0.5 * want)
        assert want > (valid.mean() - train.mean()).abs(), "an upper bound of the batches' gap"

    def test_same_samples_in_another_order(self, deterministic, tiny_batch):
        x, y = tiny_batch(0)
        for gap, is_zero in (("batch", True), ("samplewise", False)):
            _, value, _ = self.objective(deterministic(gap=gap), (x, y), (x.flip(0), y.flip(0)))
            assert (float(value) < 1e-6) == is_zero

    def test_pairs_end_with_the_smaller_batch(self, deterministic, tiny_batch):
        algorithm = deterministic(gap="samplewise")
        _, gap, (train, valid) = self.objective(algorithm, tiny_batch(0, 6), tiny_batch(1, 4))
        torch.testing.assert_close(gap, (valid - train[:4]).abs().mean().detach())

    def test_gradient_goes_through_both_batches(self, deterministic, tiny_batch):
        algorithm = deterministic(gap="samplewise")
        draw = algorithm._draw(algorithm.supernet.logits(), 0)
        gates = algorithm._relaxed_gates(draw.relaxed)
        inputs = [(x.requires_grad_(), y) for x, y in (tiny_batch(0), tiny_batch(1))]
        value, _ = algorithm._objective(*inputs, gates)
        for gradient in torch.autograd.grad(value, [x for x, _ in inputs]):
            assert gradient.abs().sum() > 0


def enumerated(logits: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    """The gradient of the expectation of a cost of two rows' choices."""
    leaf = logits.detach().double().requires_grad_()
    a, b = leaf.softmax(-1)
    return torch.autograd.grad(a[: len(costs)] @ costs.double() @ b[: costs.shape[1]], leaf)[0]


def is_unbiased(found: list[torch.Tensor], want: torch.Tensor, power: float) -> bool:
    """Say whether a mean is what it ought to be; zero in its place must be told apart."""
    stacked = torch.stack(found).double()
    error = stacked.std(0) / math.sqrt(len(stacked))
    used = error > 0
    z = ((stacked.mean(0) - want).abs() / error)[used]
    assert (want.abs() / error)[used].max() > power, "too few draws to tell anything"
    return bool((z < 4.5).all())


@pytest.mark.parametrize("options", [{}, {"control_scale": 0.0, "score_baseline": 0.9}])
def test_cost_without_a_derivative_is_estimated_without_bias(options, start):
    """On all sixteen architectures of the toy supernet."""
    samples = {"surrogate_samples": 100} if options.get("control_scale", 1.0) else {}
    algorithm = UNAS(cost_weight=1.0, **samples, **PRICED, **options)
    algorithm.criterion = step_price
    start(algorithm, spaces.Toy())
    logits = algorithm.supernet.alphas["cell"]
    with torch.no_grad():
        logits.copy_(torch.tensor([[0.3, -0.2, 0.1, 0.5], [0.0, 0.6, -0.4, 0.2]]))
    found = []
    baseline = torch.zeros(2, dtype=torch.float64)
    for seed in range(1000):
        algorithm.seed[0] = seed
        loss, _ = algorithm._cost_term(baseline)
        found.append(torch.autograd.grad(loss, logits)[0])
    assert is_unbiased(found, enumerated(logits, STEPS), power=6)


def test_gap_is_estimated_without_bias(start, tiny_batch, monkeypatch, draws=400):
    """On all six architectures of a supernet with rows of unlike length."""
    algorithm = start(UNAS(**NOW))
    for layer in algorithm.supernet.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    logits = algorithm.supernet.alphas["cell"]
    with torch.no_grad():
        logits[:, :2] = torch.tensor([[0.5, -0.3], [0.2, -0.4]])
        for weight in algorithm.weights:
            weight.mul_(3)  # architectures that are worth telling apart
    train, valid = tiny_batch(0), tiny_batch(1)
    costs = torch.zeros(3, 2)
    with torch.no_grad(), algorithm._without_trace():
        for picks in itertools.product(range(3), range(2)):
            gates = single_path_gates({"cell": 2}, picks, torch.ones(2))
            costs[picks] = algorithm._objective(train, valid, gates)[0]
    found = gradients_of(algorithm, monkeypatch, *[(train, valid)] * draws)
    want = enumerated(algorithm.supernet.logits()["cell"], costs)
    assert is_unbiased(found, want, power=6)


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0])
def test_gap_term_is_the_printed_estimate(scale, start, tiny_batch):
    """Against two separate passes, at the relaxed weights and at the conditional ones."""
    algorithm = start(UNAS(control_scale=scale, gap="samplewise"))
    algorithm.supernet.double().eval()
    logits = algorithm.supernet.alphas["cell"]
    train, valid = ((x.double(), y) for x, y in (tiny_batch(0), tiny_batch(1)))

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    def cost(gates) -> torch.Tensor:
        return algorithm._objective(train, valid, gates)[0]

    for seed in range(4):
        algorithm.seed[0] = seed
        loss, metrics = algorithm._gap_term(train, valid, torch.zeros(2, dtype=torch.float64))
        draw = algorithm._draw(algorithm.supernet.logits(), 0)
        drawn = cost(algorithm._drawn_gates(draw)).detach()
        relaxed, conditional = (
            cost(algorithm._relaxed_gates(weights)) for weights in (draw.relaxed, draw.conditional)
        )
        want = (drawn - scale * relaxed.detach()) * gradient(draw.log_prob)
        want += scale * (gradient(relaxed) - gradient(conditional))
        torch.testing.assert_close(gradient(loss), want, rtol=1e-8, atol=1e-10)
        assert {"valid/loss", "valid/accuracy", "gap"} == metrics.keys()


def test_baseline_is_the_mean_of_earlier_draws(start):
    algorithm = start(UNAS(control_scale=0.0, score_baseline=0.9))
    logits = algorithm.supernet.alphas["cell"]
    costs, mean, weight = (3.0, -1.0, 2.0), 0.0, 0.0
    baseline = torch.zeros(2, dtype=torch.float64)
    for cost in costs:
        draw = algorithm._draw(algorithm.supernet.logits(), 0)
        loss = algorithm._estimate(draw, torch.tensor(cost), torch.tensor(0.0), baseline)
        score = torch.autograd.grad(draw.log_prob, logits, retain_graph=True)[0]
        advantage = cost - (mean / weight if weight else 0.0)
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], advantage * score)
        mean, weight = 0.9 * mean + 0.1 * cost, 0.9 * weight + 0.1


@pytest.mark.long
def test_gap_is_estimated_without_bias_to_a_finer_error(start, tiny_batch, monkeypatch):
    test_gap_is_estimated_without_bias(start, tiny_batch, monkeypatch, draws=5_000)


def test_padding_gets_no_gradient(start, tiny_batch, monkeypatch):
    for options in ({}, {"softening": 0.1}, {"gap": "samplewise"}, {"control_scale": 0.0}):
        algorithm = start(UNAS(**NOW, **options))
        batches = [(tiny_batch(k), tiny_batch(k + 9)) for k in range(3)]
        for gradient in gradients_of(algorithm, monkeypatch, *batches):
            assert gradient.isfinite().all() and gradient.any() and gradient[1, 2] == 0


def test_a_supernet_in_half_precision(start, image_batch):
    algorithm = start(UNAS(cost="parameters", softening=0.05, **PRICED), IMAGES)
    algorithm.supernet.bfloat16()
    images, labels = image_batch(0)
    batch = images.bfloat16(), labels
    before = algorithm.alphas["cell"]
    metrics = algorithm.step(batch, batch)
    assert all(math.isfinite(value) for value in metrics.values())
    after = algorithm.alphas["cell"]
    assert after.dtype == torch.bfloat16 and after.isfinite().all() and (after != before).any()


def test_softened_logits_are_what_is_drawn_from(start):
    algorithm = start(UNAS(softening=0.5))
    with torch.no_grad():
        algorithm.supernet.alphas["cell"][0] = torch.tensor([20.0, 0.0, 0.0])
    picks = []
    for seed in range(300):
        algorithm.seed[0] = seed
        picks.append(int(algorithm._draw(algorithm._logits(), 0).picks[0]))
    # (1 + 0.5) / (1 + 3 * 0.5) = 0.6 in place of one.
    assert picks.count(0) / 300 == pytest.approx(0.6, abs=0.12)


def test_the_three_draws_of_a_step_are_independent(start):
    algorithm = start(UNAS())
    algorithm.seed[0] = 7
    draws = [algorithm._draw(algorithm._logits(), call).relaxed for call in (0, 1, 2)]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 3
    assert torch.equal(algorithm._draw(algorithm._logits(), 1).relaxed, draws[1])


class TestSchedules:
    def test_logits_start_at_zero(self, start):
        algorithm = start(UNAS())
        assert not algorithm.supernet.alphas["cell"].any()
        assert not algorithm.first_alphas["cell"].any()
        assert algorithm.alarms() == ()

    def test_constants_are_the_published_ones(self):
        unas = UNAS()
        assert (unas.weight_lr, unas.weight_lr_min, unas.weight_decay) == (3e-4, 1e-4, 3e-4)
        assert (unas.alpha_lr, unas.alpha_lr_min, unas.alpha_decay) == (1e-3, 3e-4, 1e-6)
        assert (unas.alpha_betas, unas.gradient_clip) == ((0.9, 0.999), 5.0)
        assert (unas.tau, unas.gap_weight, unas.alpha_warmup) == (0.4, 0.5, 15 / 100)

    def test_both_optimizers_are_adam(self, start):
        algorithm = start(UNAS(weight_momentum=0.8))
        for optimizer in (algorithm.weight_optimizer, algorithm.alpha_optimizer):
            assert isinstance(optimizer, torch.optim.Adam)
        assert algorithm.weight_optimizer.defaults["betas"] == (0.8, 0.999)
        assert algorithm.weight_optimizer.defaults["weight_decay"] == 3e-4

    def test_weights_alone_first_then_a_falling_rate(self, start, tiny_batch):
        algorithm = start(UNAS(), epochs=20, steps_per_epoch=1)
        rates, moved = [], []
        for step in range(20):
            metrics = algorithm.step(tiny_batch(step), tiny_batch(step + 50))
            rates.append(algorithm.alpha_optimizer.param_groups[0]["lr"])
            moved.append("gap" in metrics)
        assert moved == [False] * 3 + [True] * 17
        assert algorithm.alpha_steps == 17
        want = [3e-4 + 7e-4 / 2 * (1 + math.cos(math.pi * e / 20)) for e in range(20)]
        assert rates == pytest.approx(want, rel=1e-12)

    def test_weight_of_the_cost_rises(self, start):
        algorithm = UNAS(alpha_warmup=0.5, cost_warmup=0.5, cost="parameters")
        start(algorithm, IMAGES, epochs=8, steps_per_epoch=5)
        weights = []
        for algorithm.alpha_steps in (0, 5, 10, 20):
            weights.append(algorithm.current_cost_weight)
        assert weights == pytest.approx([0.0, 0.05, 0.1, 0.1])
        algorithm = start(UNAS(cost_warmup=0.0, cost="parameters"), IMAGES)
        assert algorithm.current_cost_weight == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost_target": 3.0}, "cost_target must be None with cost='none' and no criterion"),
        ({"cost_weight": 5.0}, "cost_weight must be 0.1 with cost='none'"),
        ({"cost_warmup": 0.5}, "cost_warmup must be 0.33.* with cost='none'"),
        ({"surrogate_samples": 7}, "surrogate_samples must be 1000 with cost='none'"),
        (
            {"surrogate_samples": 7, "cost": "parameters"},
            "surrogate_samples must be 1000 with cost='parameters' and no criterion",
        ),
        ({"gap": "samplewise", "gap_weight": 0.0}, "gap must be 'batch' with gap_weight=0"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message, start):
    with pytest.raises(ConfigError, match=message):
        start(UNAS(**options), IMAGES)


class TestCosts:
    def table(self, tmp_path, unit="ms") -> str:
        path = tmp_path / "costs.json"
        rows = torch.tensor([[1.0, 5.0, 2.0, 0.0], [3.0, 1.0, 0.0, 4.0]])
        CostTable(unit, 0.5, {"cell": rows}).save(path)
        return str(path)

    def test_table_costs_what_was_drawn_above_the_target(self, start, tmp_path):
        cost = self.table(tmp_path)
        algorithm = start(UNAS(cost=cost, cost_target=4.0, cost_weight=2.0, **PRICED), spaces.Toy())
        logits = algorithm.supernet.alphas["cell"]
        for seed in range(5):
            algorithm.seed[0] = seed
            draw = algorithm._draw(algorithm.supernet.logits(), 2)
            loss, metrics = algorithm._cost_term(torch.zeros(2, dtype=torch.float64))
            price = algorithm.cost_table.of({"cell": draw.flags})
            assert metrics == {"cost": price}
            above = 2 * max(0.0, price - 4)
            c = 2 * (algorithm.cost_table.expected({"cell": draw.combined}) - 4).clamp(min=0)
            want = (above - c.detach()) * draw.log_prob + c
            torch.testing.assert_close(
                torch.autograd.grad(loss, logits)[0], torch.autograd.grad(want, logits)[0]
            )

    def test_without_a_target_every_unit_counts(self, start, tmp_path):
        algorithm = start(UNAS(cost=self.table(tmp_path)), spaces.Toy())
        assert float(algorithm.penalty(torch.tensor(-3.0), 0.1)) == pytest.approx(-0.3)

    def test_the_search_turns_to_what_is_cheap(self, toy_batch):
        algorithm = UNAS(cost_weight=5.0, cost_warmup=0.0, alpha_lr=0.1, surrogate_samples=64)
        names = spaces.toy.TOY_OPERATIONS

        def price(genotype) -> float:
            a, b = (names.index(edge.op) for edge in genotype.cells["cell"])
            return max(abs(a - 2), abs(b - 1))

        algorithm.criterion = price
        run(algorithm, toy_batch, seed=0, steps=60, epochs=10)
        assert price(algorithm.derive()) == 0, "the cheapest pair of all sixteen"

    def test_surrogate_is_fitted_before_the_search(self, start):
        algorithm = UNAS(surrogate_samples=300)
        seen = []
        algorithm.criterion = lambda genotype: seen.append(genotype) or step_price(genotype)
        start(algorithm, spaces.Toy())
        assert len(seen) == 300 and len(set(seen)) == 16
        assert (algorithm.cost_table.unit, algorithm.cost_table.fixed != 0) == ("criterion", True)

    def test_nothing_is_fitted_that_no_step_looks_at(self, start, toy_batch):
        algorithm = UNAS(control_scale=0.0, **NOW)
        seen = []
        algorithm.criterion = lambda genotype: seen.append(genotype) or step_price(genotype)
        start(algorithm, spaces.Toy())
        before = len(seen)
        metrics = algorithm.step(toy_batch(), toy_batch())
        assert before == 0 and algorithm.cost_table is None
        assert metrics["cost"] == step_price(*seen)
        with pytest.raises(ConfigError, match=r"surrogate_samples must be 1000 .* without a surr"):
            algorithm = UNAS(control_scale=0.0, surrogate_samples=7)
            algorithm.criterion = step_price
            start(algorithm, spaces.Toy())

    @pytest.mark.parametrize("space", [spaces.S1(**SMALL), spaces.DARTS(nodes=1, **SMALL)])
    @pytest.mark.parametrize("named", [False, True])
    def test_a_criterion_is_refused_where_genotypes_leave_out_what_is_drawn(
        self, start, space, named
    ):
        algorithm = UNAS(cost="parameters") if named else UNAS(surrogate_samples=2)
        algorithm.criterion = lambda genotype: 1.0
        with pytest.raises(ConfigError, match=r"criterion must be None where .* take edges='all'"):
            start(algorithm, space)

    @pytest.mark.parametrize("space", [spaces.S1(edges="all", **SMALL), IMAGES])
    def test_a_criterion_is_asked_about_the_network_that_is_drawn(self, start, space):
        algorithm = UNAS(surrogate_samples=2)
        seen = []
        algorithm.criterion = lambda genotype: seen.append(genotype) or 1.0
        start(algorithm, space)
        draw = algorithm._draw(algorithm._logits(), 0)
        choice = unstack_tables(draw.flags, algorithm.supernet.alphas)
        algorithm.price(choice)
        kept = choices_of(seen[-1], space.candidates)
        assert all(torch.equal(kept[table], flags) for table, flags in choice.items())

    def test_a_named_cost_is_the_surrogate_of_a_criterion(self, start, tmp_path):
        algorithm = UNAS(cost=self.table(tmp_path))
        algorithm.criterion = step_price
        start(algorithm, spaces.Toy())
        assert algorithm.cost_table.fixed == 0.5
        assert algorithm.price({"cell": torch.eye(4).bool()[[0, 0]]}) == 3.0

    def test_a_continued_search_keeps_its_surrogate(self, start, toy_batch):
        first, second = UNAS(surrogate_samples=50), UNAS(surrogate_samples=7)
        for algorithm in (first, second):
            algorithm.criterion = step_price
            start(algorithm, spaces.Toy())
        assert second.cost_table.to_dict() != first.cost_table.to_dict()
        second.load_state_dict(first.state_dict())
        assert second.cost_table.to_dict() == first.cost_table.to_dict()

    def test_a_criterion_is_not_lost_on_the_way(self, start, freeze):
        """Neither is the surrogate taken in its place, nor one that the search did not have."""
        plain, asked = UNAS(), UNAS(surrogate_samples=7)
        asked.criterion = step_price
        searches = [start(plain, spaces.Toy()), start(asked, spaces.Toy())]
        for (search, other), wanted in (
            (searches, "set before load_state_dict, .* got None"),
            (searches[::-1], "None, .* got <function"),
        ):
            before = freeze(search.state_dict())
            with pytest.raises(ConfigError, match=f"criterion must be {wanted}"):
                search.load_state_dict(other.state_dict())
            assert freeze(search.state_dict()) == before

    @pytest.mark.parametrize("value", [math.nan, math.inf, None, "3"])
    def test_a_criterion_that_gives_no_number_is_refused(self, start, tmp_path, value, toy_batch):
        algorithm = UNAS(cost=self.table(tmp_path), **PRICED)
        algorithm.criterion = lambda genotype: value
        start(algorithm, spaces.Toy())
        with pytest.raises(DataError, match="criterion: must return a finite number, got"):
            algorithm.step(toy_batch(4), toy_batch(4))

    @pytest.mark.parametrize("value", [2, np.float32(2), torch.tensor(2.0)])
    def test_a_criterion_may_give_a_number_of_any_kind(self, start, tmp_path, value, toy_batch):
        algorithm = UNAS(cost=self.table(tmp_path), **PRICED)
        algorithm.criterion = lambda genotype: value
        start(algorithm, spaces.Toy())
        assert algorithm.step(toy_batch(4), toy_batch(4))["cost"] == 2.0

    def test_measured_latency_times_what_was_drawn(self, start, image_batch, monkeypatch):
        algorithm = start(UNAS(cost="latency", latency="measured", **PRICED), IMAGES)
        assert algorithm.cost_table.unit == "ms"
        timed = []
        real = DrawnNetwork.milliseconds
        monkeypatch.setattr(
            DrawnNetwork,
            "milliseconds",
            lambda self, choice: timed.append(choice) or real(self, choice, repeats=1),
        )
        algorithm.start_step()
        want = algorithm._draw(algorithm._logits(), 2).flags
        metrics = algorithm._architecture_step(image_batch(0), image_batch(1))
        (choice,) = timed
        assert torch.equal(choice["cell"], want)
        assert 0 < metrics["cost"] < 10_000
        assert algorithm._drawn_network.input_shape == (24, 1, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_lr": 1e-4}, "alpha_lr_min must be at most alpha_lr=0.0001, got 0.0003"),
        ({"weight_nesterov": True}, "weight_nesterov must be false, since Adam moves the weights"),
        ({"latency": "measured"}, "cost must name a table in ms.* got 'none'"),
        ({"gap": "sample"}, "gap must be one of 'batch', 'samplewise', got 'sample'"),
    ],
)
def test_options_that_do_not_fit_together(options, message):
    with pytest.raises(ConfigError, match=message):
        UNAS(**options)


def test_measured_latency_needs_a_table_of_times_and_no_criterion(start, tmp_path):
    algorithm = UNAS(cost=TestCosts().table(tmp_path, "mJ"), latency="measured")
    with pytest.raises(ConfigError, match="latency must be 'table' with a table in 'mJ'"):
        start(algorithm, spaces.Toy())
    algorithm = UNAS(cost=TestCosts().table(tmp_path), latency="measured")
    algorithm.criterion = step_price
    with pytest.raises(ConfigError, match="latency must be 'table' with a criterion"):
        start(algorithm, spaces.Toy())


def test_the_draw_is_the_arg_max_however_close_the_relaxed_weights_are():
    u = torch.tensor([[0.5, 0.5000001, 0.4]], dtype=torch.float64)
    draw = coupled_draw(torch.zeros(1, 3, dtype=torch.float64), u, 0.4)
    assert draw.flags.tolist() == [[False, True, False]]
    assert (draw.relaxed[0, 1] - draw.relaxed[0, 0]).abs() < 1e-5
