"""DARTS along its hypergradients, and iDARTS, as steps of a search: against the printed recipes."""

import copy

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas import hypergradients
from pyfast_nas.algorithms import DARTS, IDARTS, StepGraph
from pyfast_nas.errors import ConfigError

SECOND_ORDER = ("finite_difference", "unrolled")


class Official:
    """The authors' recipe of a second-order step (eqs. 6 to 8), in plain autograd and loops."""

    def __init__(self, supernet, lr, exact):
        self.net, self.lr, self.exact = supernet, lr, exact
        self.weights, self.alphas = supernet.weight_parameters(), supernet.arch_parameters()
        self.momentum = [torch.zeros_like(w) for w in self.weights]

    def loss(self, batch, weights=None):
        inputs, labels = batch
        if weights is not None:
            names = {id(p): name for name, p in self.net.named_parameters()}
            values = {names[id(w)]: v for w, v in zip(self.weights, weights, strict=True)}
            return F.cross_entropy(torch.func.functional_call(self.net, values, inputs), labels)
        return F.cross_entropy(self.net(inputs), labels)

    def hypergradient(self, train, valid):
        first = torch.autograd.grad(self.loss(train), self.weights)
        virtual = [
            (w - self.lr * (0.9 * b + g + 3e-4 * w)).detach().requires_grad_()
            for w, b, g in zip(self.weights, self.momentum, first, strict=True)
        ]
        found = torch.autograd.grad(self.loss(valid, virtual), [*virtual, *self.alphas])
        v, direct = found[: len(virtual)], found[len(virtual) :]
        if self.exact:
            graph = torch.autograd.grad(self.loss(train), self.weights, create_graph=True)
            mixed = torch.autograd.grad(graph, self.alphas, v)
        else:
            eps = 0.01 / torch.cat([entry.flatten() for entry in v]).norm()
            sides = []
            for sign in (1, -1):
                moved = [
                    (w + sign * eps * d).detach() for w, d in zip(self.weights, v, strict=True)
                ]
                sides.append(torch.autograd.grad(self.loss(train, moved), self.alphas))
            mixed = [(p - n) / (2 * eps) for p, n in zip(*sides, strict=True)]
        return [d - self.lr * m for d, m in zip(direct, mixed, strict=True)]

    def weight_step(self, train):
        gradients = torch.autograd.grad(self.loss(train), self.weights)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        with torch.no_grad():
            for w, b, g in zip(self.weights, self.momentum, gradients, strict=True):
                b.copy_(0.9 * b + min(1.0, 5.0 / (norm + 1e-6)) * g + 3e-4 * w)
                w -= self.lr * b


@pytest.fixture
def doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_steps_are_the_official_recipe(name, doubles, start, small_darts, image_batch):
    algorithm = start(DARTS(hypergradient=name), small_darts, epochs=1, steps_per_epoch=3)
    official = Official(copy.deepcopy(algorithm.supernet), 0.025, exact=name == "unrolled")
    adam = torch.optim.Adam(official.alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    firsts = []
    for step in range(3):
        train, valid = image_batch(step), image_batch(step + 9)
        train, valid = ((x.double(), y) for x, y in (train, valid))
        firsts.append(torch.autograd.grad(official.loss(valid), official.alphas))
        want = official.hypergradient(train, valid)
        problem = algorithm.bilevel_problem()
        algorithm.start_step()
        found = getattr(hypergradients, name)(problem, train, valid)
        for ours, theirs, first in zip(found, want, firsts[-1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)
            assert (theirs - first).norm() > 1e-3 * first.norm(), "no second order to be seen"
        for alpha, gradient in zip(official.alphas, want, strict=True):
            alpha.grad = gradient
        adam.step()
        official.weight_step(train)
        algorithm.step(train, valid)
    for ours, theirs in zip(algorithm.weights, official.weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_the_radius_is_handed_on(start, tiny_batch, monkeypatch):
    seen = []

    def spy(problem, train, valid, **options):
        seen.append(options)
        return [torch.zeros_like(alpha) for alpha in problem.alphas]

    monkeypatch.setattr(hypergradients, "finite_difference", spy)
    start(DARTS(hypergradient="finite_difference", radius=1e-3)).step(tiny_batch(0), tiny_batch(1))
    assert seen == [{"radius": 1e-3}]


def test_a_radius_that_would_do_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"radius must be 0\.01 with hypergradient='unrolled'"):
        DARTS(hypergradient="unrolled", radius=1e-3)
    assert DARTS(hypergradient="neumann", hvp="finite_difference", radius=1e-3).radius == 1e-3


@pytest.mark.parametrize("name", ["first_order", "finite_difference"])
def test_a_choice_of_products_where_there_is_none_is_refused(name):
    with pytest.raises(ConfigError, match=f"hvp must be 'exact' with hypergradient='{name}'"):
        DARTS(hypergradient=name, hvp="finite_difference")


@pytest.mark.parametrize("name", ["identity", "neumann", "conjugate_gradient", "nystrom"])
def test_every_estimator_drives_a_search(name, start, tiny_batch):
    algorithm = start(DARTS(hypergradient=name))
    before = algorithm.alphas["cell"]
    for step in range(2):
        metrics = algorithm.step(tiny_batch(step), tiny_batch(step + 9))
    assert {"valid/loss", "train/loss", "alpha/gradient_norm"} <= metrics.keys()
    assert not torch.equal(algorithm.alphas["cell"], before)


def test_nystrom_takes_other_columns_in_every_step(start, tiny_batch, monkeypatch):
    drawn = []
    randperm = torch.randperm

    def spy(size, *, generator):
        drawn.append(randperm(size, generator=generator)[:5].tolist())
        return randperm(size, generator=generator)

    monkeypatch.setattr(torch, "randperm", spy)
    algorithm = start(DARTS(hypergradient="nystrom"))
    for step in range(3):
        algorithm.step(tiny_batch(step), tiny_batch(step + 9))
    assert len({tuple(columns) for columns in drawn}) == len(drawn) == 3


def test_other_orders_than_the_first_are_not_recorded(start):
    graph = StepGraph(start(DARTS(hypergradient="unrolled")))
    assert graph.reason == "a step along hypergradient='unrolled' is not recorded"


class TestIDARTS:
    @pytest.mark.parametrize("inner_steps", [1, 3])
    def test_the_architecture_moves_after_every_inner_steps(self, inner_steps, start, tiny_batch):
        algorithm = start(IDARTS(inner_steps=inner_steps))
        moved = []
        for step in range(7):
            before = algorithm.alphas["cell"]
            metrics = algorithm.step(tiny_batch(step), tiny_batch(step + 9))
            moved.append(not torch.equal(algorithm.alphas["cell"], before))
            assert ("valid/loss" in metrics) is moved[-1]
        assert moved == [step > 0 and step % inner_steps == 0 for step in range(7)]
        assert algorithm.alpha_steps == sum(moved)

    def test_a_step_is_the_printed_series_at_the_trained_weights(self, doubles, start, tiny_batch):
        order = 2
        algorithm = start(IDARTS(inner_steps=1, neumann_order=order))
        batches = [tuple(t.double() if t.is_floating_point() else t for t in tiny_batch(n))
                   for n in range(4)]  # fmt: skip
        algorithm.step(batches[0], batches[1])
        problem = algorithm.bilevel_problem()
        train, valid = batches[2], batches[3]
        algorithm.start_step()
        gamma = algorithm.weight_optimizer.param_groups[0]["lr"]
        found = algorithm._estimate(problem, train, valid)
        products = hypergradients.HessianProducts(problem, train)
        v = problem.gradients("valid", valid, problem.weights)
        term = list(v)
        total = [entry.clone() for entry in v]
        for _ in range(order):
            term = [t - gamma * h for t, h in zip(term, products.ww(term), strict=True)]
            total = [s + t for s, t in zip(total, term, strict=True)]
        direct = problem.gradients("valid", valid, problem.alphas)
        want = [d - gamma * m for d, m in zip(direct, products.aw(total), strict=True)]
        torch.testing.assert_close(list(found), want, rtol=1e-9, atol=1e-12)
        assert found.info.products == {"ww": order, "aw": 1}

    def test_options_reach_the_series(self, start, tiny_batch, monkeypatch):
        seen = []

        def spy(problem, train, valid, **options):
            seen.append(options)
            return [torch.zeros_like(alpha) for alpha in problem.alphas]

        monkeypatch.setattr(hypergradients, "neumann", spy)
        options = {"gamma": 0.1, "damping": 0.2, "hvp": "finite_difference"}
        algorithm = start(IDARTS(inner_steps=1, neumann_order=5, **options))
        for step in range(2):
            algorithm.step(tiny_batch(step), tiny_batch(step + 9))
        assert seen == [{"order": 5, "gamma": 0.1, "damping": 0.2, "hvp": "finite_difference"}]
