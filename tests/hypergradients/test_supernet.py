"""Second-order DARTS on the fused supernet, against the published recipe in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas import _ext, algorithms, spaces
from pyfast_nas import hypergradients as hg
from pyfast_nas.algorithms.gradient_search import softmax_gates
from pyfast_nas.bench.plain_darts import PlainDARTS

# torch's own forward-mode tables are still compiled by torch.jit.script on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
SPACE = spaces.DARTS(channels=4, cells=3, num_classes=10, in_channels=3, image_size=8)


def image_batch(seed, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images.to(dtype), torch.randint(10, (size,), generator=generator)


def searching(dtype=torch.float64, steps=2):
    """A search after some weight steps, and its problem."""
    torch.manual_seed(0)
    algorithm = algorithms.DARTS()
    algorithm.prepare(SPACE.supernet().to(dtype), space=SPACE, epochs=2, steps_per_epoch=50)
    with torch.no_grad():
        for alpha in algorithm.alpha_parameters:
            alpha.normal_()
    for seed in range(steps):
        algorithm.start_step()
        algorithm._weight_step(image_batch(seed, dtype=dtype))

    def loss_of(split):
        def loss(batch):
            gates = softmax_gates(algorithm.supernet.logits())
            return algorithm._evaluate(split, batch, gates)[0]

        return loss

    problem = hg.BilevelProblem(
        weights=algorithm.weights,
        alphas=algorithm.alpha_parameters,
        train_loss=loss_of("train"),
        valid_loss=loss_of("valid"),
        weight_optimizer=algorithm.weight_optimizer,
        without_trace=algorithm._without_trace,
    )
    return algorithm, problem


def published(model, alphas, weights, momentum, train, valid, *, rate, mu, decay):
    """The architect of the DARTS code: `+R, -2R, +R` on the weights, and all of it in place."""

    def loss(batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    saved = [w.detach().clone() for w in weights]
    gradients = torch.autograd.grad(loss(train), weights)
    with torch.no_grad():
        for w, g, b in zip(weights, gradients, momentum, strict=True):
            w -= rate * (mu * b + g + decay * w)
    gradients = torch.autograd.grad(loss(valid), [*alphas, *weights])
    direct, vector = gradients[: len(alphas)], gradients[len(alphas) :]
    with torch.no_grad():
        for w, value in zip(weights, saved, strict=True):
            w.copy_(value)
    radius = 0.01 / torch.cat([v.flatten() for v in vector]).norm()
    sides = []
    for factor in (1, -2):
        with torch.no_grad():
            for w, v in zip(weights, vector, strict=True):
                w += factor * radius * v
        sides.append(torch.autograd.grad(loss(train), alphas))
    with torch.no_grad():
        for w, value in zip(weights, saved, strict=True):
            w.copy_(value)
    return [d - rate * (p - n) / (2 * radius) for d, p, n in zip(direct, *sides, strict=True)]


@pytest.mark.parametrize("serving", ["kernels", "reference"])
def test_step_is_the_published_one(serving, distance):
    if serving == "kernels" and "compiled" not in _ext.kernels_in_use().values():
        pytest.skip("no compiled kernels for the CPU in this installation")
    algorithm, problem = searching()
    plain = PlainDARTS(channels=4, cells=3).double()
    values = [*algorithm.alpha_parameters, *algorithm.weights]
    weights = [p for p in plain.parameters() if p not in set(plain.arch_parameters())]
    with torch.no_grad():
        for mine, value in zip([*plain.arch_parameters(), *weights], values, strict=True):
            mine.copy_(value)
    state = algorithm.weight_optimizer.state
    want = published(
        plain,
        plain.arch_parameters(),
        weights,
        [state[w]["momentum_buffer"] for w in algorithm.weights],
        image_batch(10),
        image_batch(11),
        rate=algorithm.weight_lr,
        mu=algorithm.weight_momentum,
        decay=algorithm.weight_decay,
    )
    with _ext.use("require" if serving == "kernels" else "reference"):
        got = hg.finite_difference(problem, image_batch(10), image_batch(11))
    assert distance(got, want) <= 1e-6
    # The second term is there to be seen.
    assert distance(got.direct, want) > 1e-3


def test_exact_products_on_cells_obey_their_laws(like, dot, distance):
    _, problem = searching()
    exact = hg.HessianProducts(problem, image_batch(10, 4))
    tangents = hg.HessianProducts(problem, image_batch(10, 4), mode="forward_over_reverse")
    u, v = like(problem.weights, 1), like(problem.weights, 2)
    assert dot(u, exact.ww(v)) == pytest.approx(dot(exact.ww(u), v), rel=1e-9)
    assert distance(tangents.aw(u), exact.aw(u)) <= 1e-10
    # Kinks are crossed by no step as small as this.
    tiny = {"mode": "finite_difference", "radius": 1e-6}
    differences = hg.HessianProducts(problem, image_batch(10, 4), **tiny)
    assert distance(differences.aw(u), exact.aw(u)) <= 1e-5


@pytest.mark.promise("S1")
@pytest.mark.parametrize("name", ["finite_difference", "unrolled", "neumann"])
def test_a_search_is_left_as_it_was(name):
    algorithm, problem = searching()
    model = algorithm.supernet
    before = {n: t.clone() for n, t in model.state_dict().items()}
    streams, entries = torch.get_rng_state(), len(algorithm.weight_optimizer.state)
    gradients = hg.ESTIMATORS[name](problem, image_batch(10), image_batch(11))
    assert [g.shape for g in gradients] == [a.shape for a in algorithm.alpha_parameters]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), streams)
    assert len(algorithm.weight_optimizer.state) == entries


def test_what_is_not_wanted_is_not_computed(monkeypatch):
    """A pass for the alphas asks the fused backward for no gradient of a weight."""
    if "compiled" not in _ext.kernels_in_use().values():
        pytest.skip("no compiled kernels for the CPU in this installation")
    _, problem = searching(steps=1)
    seen = []
    required = problem.train_loss

    def spy(batch):
        seen.append((problem.alphas[0].requires_grad, problem.weights[0].requires_grad))
        return required(batch)

    problem.train_loss = spy
    hg.finite_difference(problem, image_batch(10), image_batch(11))
    # The gradient of the virtual step, then both sides of the difference.
    assert seen == [(False, True), (True, False), (True, False)]
