"""Differentiation through optimizer steps, against autograd through the same steps written out."""

import pytest
import torch
import torch.nn.functional as F

from pyfast_nas import hypergradients as hg
from pyfast_nas.errors import ConfigError

SGD, ADAM = torch.optim.SGD, torch.optim.Adam
FORMS = {
    "plain": {"lr": 0.2},
    "heavy ball": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
    "Nesterov": {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
}


def written_out(model, problem, batches, valid, form, last):
    """The hypergradient by autograd through a graph of all steps: the meaning of `unrolled`."""
    names = [name for name, p in model.named_parameters() if p is not model.alpha]
    weights = [p.detach().clone().requires_grad_() for p in problem.weights]
    buffers = [None if b is None else b.clone() for b in problem.weight_optimizer.buffers()]
    momentum, decay = form.get("momentum", 0.0), form.get("weight_decay", 0.0)

    def loss(values, batch):
        outputs = torch.func.functional_call(
            model, dict(zip(names, values, strict=True)), (batch[0],)
        )
        return F.cross_entropy(outputs, batch[1])

    for index, batch in enumerate(batches):
        if index == len(batches) - last:
            weights = [w.detach().requires_grad_() for w in weights]
            buffers = [None if b is None else b.detach() for b in buffers]
        gradients = torch.autograd.grad(loss(weights, batch), weights, create_graph=True)
        stepped = []
        for place, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            update = gradient + decay * weight
            if momentum:
                old = buffers[place]
                damp = 1 - form.get("dampening", 0.0)
                buffers[place] = update if old is None else momentum * old + damp * update
                nesterov = form.get("nesterov")
                update = update + momentum * buffers[place] if nesterov else buffers[place]
            stepped.append(weight - form["lr"] * update)
        weights = stepped
    return torch.autograd.grad(loss(weights, valid), [model.alpha])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("steps", "last"), [(1, 1), (2, 2), (4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("begun", [True, False])
def test_unrolled_is_autograd_through_the_steps(form, steps, last, begun, smooth, batch, distance):
    model, problem = smooth(optimizer=lambda ws: SGD(ws, **FORMS[form]))
    if not begun:
        problem.weight_optimizer.optimizer.state.clear()
    batches = [batch(seed) for seed in range(steps)]
    want = written_out(model, problem, batches, batch(50), FORMS[form], last)
    got = hg.unrolled(problem, batches, batch(50), steps=steps, last=last)
    assert distance(got, want) <= 1e-9
    assert got.info.products == ({"aw": 1} if steps == 1 else {"both": last})


@pytest.mark.parametrize("form", FORMS)
def test_finite_difference_is_close_to_it(form, smooth, batch, distance):
    model, problem = smooth(optimizer=lambda ws: SGD(ws, **FORMS[form]))
    want = written_out(model, problem, [batch(1)], batch(2), FORMS[form], 1)
    got = hg.finite_difference(problem, batch(1), batch(2))
    assert distance(got, want) <= 1e-3
    assert got.info.products == {"aw": 1}


@pytest.mark.parametrize("steps", [1, 3])
def test_gradcheck(steps):
    """The estimator is the derivative of what it says: the outer loss after the steps."""
    w, a = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.3, -0.2], [0.7]))
    optimizer = SGD([w], lr=0.1, momentum=0.9, weight_decay=0.01)

    def train_loss(_):
        return (w.cos() * a.exp()).sum() + (w.square() * a).prod()

    def valid_loss(_):
        return (w.sin() * a).sum()

    problem = hg.BilevelProblem(
        weights=[w],
        alphas=[a],
        train_loss=train_loss,
        valid_loss=valid_loss,
        weight_optimizer=optimizer,
    )

    class After(torch.autograd.Function):
        @staticmethod
        def forward(ctx, alpha):
            with torch.no_grad():
                a.copy_(alpha)
            (ctx.gradient,) = hg.unrolled(problem, None, None, steps=steps)
            values, buffers = [w.detach().clone()], [None]
            start = values
            for _ in range(steps):
                gradient = problem.gradients("train", None, [w])
                values, buffers, _ = problem.inner.sgd_step(values, gradient, buffers)
                w.data.copy_(values[0])
            outcome = valid_loss(None).detach()
            w.data.copy_(start[0])
            return outcome

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.gradient

    alpha = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(After.apply, [alpha])


def test_rate_zero_is_first_order_to_the_bit(smooth, batch):
    _, problem = smooth(optimizer=lambda ws: SGD(ws, lr=0.0, momentum=0.9))
    (want,) = hg.first_order(problem, batch(1), batch(2))
    for estimator in (hg.finite_difference, hg.unrolled):
        assert torch.equal(estimator(problem, batch(1), batch(2))[0], want)


def test_implicit_part_is_linear_in_the_rate(figure):
    """In figure 2 the mixed derivative is -2 and v is alpha = 2 wherever w' lies: 4 xi."""
    for rate in (0.0, 0.1, 0.2, 0.5):
        for estimator in (hg.unrolled, hg.finite_difference):
            (part,) = estimator(figure(lr=rate), None, None).implicit
            assert part.item() == pytest.approx(4 * rate, abs=1e-11)


@pytest.mark.parametrize("steps", [1, 3])
def test_clipping_is_a_constant_factor(steps, quadratic):
    """A clipped step is a plain one at the rate times the factor."""
    problem = quadratic((1.0, 0.0))
    norm = (3.5**2 + 1.5**2) ** 0.5
    if steps == 1:
        clipped = hg.unrolled(problem, None, None, clip=norm / 2)
        half = hg.unrolled(quadratic((1.0, 0.0), lr=0.05), None, None)
        assert clipped[0].item() == pytest.approx(half[0].item(), abs=1e-12)
    loose = hg.unrolled(problem, None, None, steps=steps, clip=1e9)
    assert torch.equal(loose[0], hg.unrolled(problem, None, None, steps=steps)[0])
    tight = hg.unrolled(problem, None, None, steps=steps, clip=1e-12)
    assert tight[0].item() == pytest.approx(1.0, abs=1e-9)


def test_one_step_of_adam_is_differentiated(smooth, batch):
    """Against a difference of the whole map from alpha to the loss after a step."""
    model, problem = smooth(optimizer=lambda ws: ADAM(ws, lr=0.05, eps=1e-2))
    (gradient,) = hg.unrolled(problem, batch(1), batch(2))

    def after_a_step():
        g = problem.gradients("train", batch(1), problem.weights)
        start = [w.detach().clone() for w in problem.weights]
        new, _ = problem.inner.step(start, g)
        with torch.no_grad():
            for w, value in zip(problem.weights, new, strict=True):
                w.copy_(value)
            loss = float(problem.valid_loss(batch(2)))
            for w, value in zip(problem.weights, start, strict=True):
                w.copy_(value)
        return loss

    for entry in range(4):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                model.alpha[entry] += sign * 1e-5
            values.append(after_a_step())
            with torch.no_grad():
                model.alpha[entry] -= sign * 1e-5
        slope = (values[0] - values[1]) / 2e-5
        assert gradient[entry].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_chunks_of_a_batch_weigh_as_many_samples(smooth, batch, distance):
    """First order, no batch norm: the mean over chunks weighted by their sizes."""
    _, problem = smooth()
    inputs, labels = batch(2, 12)
    whole = hg.first_order(problem, None, (inputs, labels))
    parts = [
        hg.first_order(problem, None, (inputs[i:j], labels[i:j]))[0] * (j - i) / 12
        for i, j in ((0, 5), (5, 12))
    ]
    assert distance([sum(parts)], whole) <= 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer at least 1, got 0"),
        ({"steps": True}, "steps must be an integer at least 1, got True"),
        ({"steps": 2, "last": 3}, "last must be an integer at least 1 and at most 2, got 3"),
        ({"steps": 2, "mixed_at": "unrolled"}, "mixed_at must be 'start' .* 2 steps"),
        ({"mixed_at": "end"}, "mixed_at must be 'start' or 'unrolled', got 'end'"),
    ],
)
def test_options_out_of_range_are_refused(options, message, quadratic):
    with pytest.raises(ConfigError, match=message):
        hg.unrolled(quadratic(), None, None, **options)


def test_what_does_not_fit_the_optimizer_is_refused(quadratic, smooth, batch):
    with pytest.raises(ConfigError, match="train must hold 3 batches, got 2"):
        hg.unrolled(quadratic(), [None, None], None, steps=3)
    _, problem = smooth(optimizer=lambda ws: ADAM(ws, lr=0.1))
    with pytest.raises(ConfigError, match=r"must be torch\.optim\.SGD where more than one"):
        hg.unrolled(problem, batch(1), batch(2), steps=2)
    problem.weight_optimizer = None
    with pytest.raises(ConfigError, match="weight_optimizer must be given"):
        hg.unrolled(problem, batch(1), batch(2))
