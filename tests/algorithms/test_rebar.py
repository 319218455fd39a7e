"""The estimator of UNAS: golden values, the conditional relaxation, and unbiasedness."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyfast_nas import ops
from pyfast_nas.algorithms.rebar import coupled_draw, soften, surrogate_loss

F64 = torch.float64
TAU = 0.4
LINEAR = torch.tensor([0.9, -1.3, 0.4, 2.2], dtype=F64)
WAVES = torch.tensor([[0.3, -0.5, 0.2, 0.7], [0.1, 0.9, -0.4, 0.2]], dtype=F64)


def uniforms(seed: int, *shape: int, offset: int = 0) -> Tensor:
    *_, columns = shape
    flat = ops.philox_uniform(torch.tensor([seed, offset]), math.prod(shape) // columns, columns)
    return flat.view(shape).to(F64)


class TestGoldenVector:
    logits = torch.tensor([[0.3, -0.2, 0.1, 0.5]], dtype=F64, requires_grad=True)
    u = torch.tensor([[0.6, 0.2, 0.9, 0.35]], dtype=F64)

    def gradient(self, value: Tensor) -> list[float]:
        (gradient,) = torch.autograd.grad(value, self.logits)
        return gradient[0].tolist()

    def test_relaxation(self):
        draw = coupled_draw(self.logits, self.u, TAU)
        assert draw.picks.tolist() == [2]
        want = [0.030597832, 0.000497529, 0.960573003, 0.008331636]
        assert draw.relaxed[0].tolist() == pytest.approx(want, abs=1e-9)

    def test_gradient_of_the_relaxation(self):
        relaxed = coupled_draw(self.logits, self.u, TAU).relaxed
        want = [0.035994520, -0.002151130, -0.070722332, 0.036878943]
        assert self.gradient((relaxed * LINEAR).sum()) == pytest.approx(want, abs=1e-8)

    def test_gradient_of_the_conditional_relaxation(self):
        conditional = coupled_draw(self.logits, self.u, TAU).conditional
        want = [0.011505157, -0.011400475, -0.012626132, 0.012521450]
        assert self.gradient((conditional * LINEAR).sum()) == pytest.approx(want, abs=1e-8)

    def test_estimate(self):
        draw = coupled_draw(self.logits, self.u, TAU)
        loss = surrogate_loss(draw, LINEAR[draw.picks].sum(), (draw.combined * LINEAR).sum())
        want = [0.032565253, 0.014147620, -0.080934281, 0.034221408]
        assert self.gradient(loss) == pytest.approx(want, abs=1e-8)


def printed_conditional(logits: Tensor, u: Tensor, tau: float) -> Tensor:
    """The conditional relaxation as it is printed, with uniforms in place of their logarithms."""
    p = logits.softmax(-1)
    with torch.no_grad():
        k = (p.log() - (-u.log()).log()).argmax(-1, keepdim=True)
        v_k = u.gather(-1, k) ** (1 / p.gather(-1, k))
        v = u / v_k**p
    keys = -(-v.log() / p - v_k.log()).log()
    keys = keys.scatter(-1, k, -(-v_k.log()).log())
    return (keys / tau).softmax(-1)


def test_both_relaxations_agree_in_value():
    logits = 2 * torch.randn(1, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    draw = coupled_draw(logits.expand(20_000, 3, 5), uniforms(1, 20_000, 3, 5), TAU)
    assert (draw.relaxed - draw.conditional).abs().max() < 1e-12
    assert torch.equal(draw.relaxed.argmax(-1), draw.picks)


def test_derivative_is_that_of_the_printed_formula_with_its_uniforms_held():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(50, 3, 5, dtype=F64, generator=generator).requires_grad_()
    weights = torch.randn(5, dtype=F64, generator=generator)
    u = uniforms(3, 50, 3, 5)
    got = coupled_draw(logits, u, TAU).conditional
    want = printed_conditional(logits, u, TAU)
    gradients = [torch.autograd.grad((x * weights).sum(), logits)[0] for x in (got, want)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_one_pass_gives_the_difference_of_two_gradients():
    logits = torch.randn(4, 2, 3, dtype=F64).requires_grad_()
    draw = coupled_draw(logits, uniforms(4, 4, 2, 3), TAU)

    def gradient(weights: Tensor) -> Tensor:
        return torch.autograd.grad(weights.square().sum(), logits, retain_graph=True)[0]

    want = gradient(draw.relaxed) - gradient(draw.conditional)
    torch.testing.assert_close(gradient(draw.combined), want, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(draw.combined, draw.relaxed, rtol=0, atol=1e-12)


def test_padded_candidates_are_never_drawn_and_change_nothing():
    logits = torch.randn(100, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(5))
    logits[:, 1, 3] = -torch.inf
    logits.requires_grad_()
    u = uniforms(6, 100, 2, 4)
    price = torch.tensor([1.0, -2.0, 0.5, 9.0], dtype=F64)
    draw = coupled_draw(logits, u, TAU)
    loss = surrogate_loss(draw, price[draw.picks].sum(-1), (draw.combined * price).sum((-1, -2)))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all() and not gradient[:, 1, 3].any()
    assert (draw.picks[:, 1] < 3).all() and not draw.combined[:, 1, 3].any()
    # The shorter row alone, without the padding.
    alone = coupled_draw(logits[:, 1:, :3], u[:, 1:, :3], TAU)
    torch.testing.assert_close(alone.relaxed[:, 0], draw.relaxed[:, 1, :3], rtol=0, atol=0)
    torch.testing.assert_close(alone.conditional[:, 0], draw.conditional[:, 1, :3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_ends_of_the_noise_and_unlikely_candidates_stay_finite(dtype):
    tip = 2.0**-24
    u = torch.tensor(list(itertools.product([tip, 0.5, 1 - tip], repeat=3)), dtype=torch.float32)
    for spread in (0.0, 30.0, 200.0):
        row = torch.tensor([0.0, -spread, 0.3 * spread], dtype=dtype)
        logits = row.expand(1, 27, 3).clone().requires_grad_()
        draw = coupled_draw(logits, u.unsqueeze(0), TAU)
        (gradient,) = torch.autograd.grad(
            surrogate_loss(draw, torch.ones(1), draw.combined[..., 0].sum(-1)).sum(), logits
        )
        assert gradient.isfinite().all() and gradient.dtype is dtype
        assert draw.log_prob.dtype is (F64 if dtype is F64 else torch.float32)


@pytest.mark.parametrize(
    ("logits", "u", "tau", "message"),
    [
        ([[0.0, math.nan]], [[0.5, 0.5]], 1.0, "neither NaN nor"),
        ([[0.0, math.inf]], [[0.5, 0.5]], 1.0, "neither NaN nor"),
        ([[-math.inf, -math.inf]], [[0.5, 0.5]], 1.0, "must have a candidate"),
        ([[0.0, 0.0]], [[0.5, 1.0]], 1.0, r"uniforms inside \(0, 1\)"),
        ([[0.0, 0.0]], [[0.5]], 1.0, r"got \[1, 2\] and \[1, 1\]"),
        ([0.0, 0.0], [0.5, 0.5], 1.0, r"same shape \[\.\.\., rows, num_ops\]"),
        ([[0.0, 0.0]], [[0.5, 0.5]], 0.0, "tau must be positive and finite, got 0.0"),
        ([[0.0, 0.0]], [[0.5, 0.5]], math.nan, "tau must be positive and finite, got nan"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(logits, u, tau, message):
    with pytest.raises(ValueError, match=message):
        coupled_draw(torch.tensor(logits), torch.tensor(u), tau)


def test_softened_logits():
    logits = torch.tensor([[2.0, 0.0, -1.0], [1.0, 0.0, -torch.inf]], dtype=F64)
    p = logits.softmax(-1)
    want = (p + 0.08) / (1 + 3 * 0.08)
    torch.testing.assert_close(soften(logits, 0.08).softmax(-1)[0], want[0])
    torch.testing.assert_close(soften(logits, 0.08)[1, :2], (p[1, :2] + 0.08).log())
    assert soften(logits, 0.08)[1, 2] == -torch.inf
    assert soften(logits, 0.0) is logits
    leaf = logits.clone().requires_grad_()
    gradient = torch.autograd.grad(soften(leaf, 0.08)[1, 0], leaf)[0]
    assert gradient.isfinite().all() and gradient[1, 2] == 0


def one_row(x: Tensor) -> Tensor:
    """The cost of `[..., 1, 4]` weights: linear and two waves."""
    return (x * LINEAR).sum((-1, -2)) + (x @ WAVES.T).sin().sum((-1, -2))


def two_rows(x: Tensor) -> Tensor:
    """The cost of `[..., 2, 3]` weights, in which each row's part depends on the other's choice."""
    a, b = x.unbind(-2)
    coupling = torch.tensor([[1.5, -2.0, 0.3], [-0.7, 0.9, 2.1], [0.2, -1.1, 0.8]], dtype=F64)
    return ((a @ coupling) * b).sum(-1) + (2 * a[..., 0] + 3 * b[..., 1]).sin()


STEPS = torch.tensor([[3.0, 0.0, 1.0], [-2.0, 5.0, 0.0], [1.0, -4.0, 2.0]], dtype=F64)
PRICE = torch.tensor([[1.0, -0.5, 0.5], [0.0, 1.0, 2.0]], dtype=F64)

# Logits, the cost of a choice, the surrogate: the cost itself, or of a cost without a derivative
# something that only resembles it.
PROBLEMS = {
    "one row": ([[0.3, -0.2, 0.1, 0.5]], one_row, one_row),
    "two rows": ([[0.3, -0.2, 0.1], [0.0, 0.6, -0.4]], two_rows, two_rows),
    "no derivative": (
        [[0.3, -0.2, 0.1], [0.0, 0.6, -0.4]],
        lambda x: STEPS[x[..., 0, :].argmax(-1), x[..., 1, :].argmax(-1)],
        lambda x: (x * PRICE).sum((-1, -2)),
    ),
}
CHUNKS, DRAWS = 40, 26_000
UNBIASED = ("full", "scale 0", "scale 0.3", "scale 0 with baseline", "full with baseline")
BIASED = ("no correction", "pathwise", "straight through", "correction twice")


def exact_gradient(problem: str) -> Tensor:
    logits, cost, _ = PROBLEMS[problem]
    alpha = torch.tensor(logits, dtype=F64, requires_grad=True)
    rows, width = alpha.shape
    choices = torch.tensor(list(itertools.product(range(width), repeat=rows)))
    z = torch.eye(width, dtype=F64)[choices]
    probability = (z * alpha.softmax(-1)).sum(-1).prod(-1)
    return torch.autograd.grad((probability * cost(z)).sum(), alpha)[0]


def sampled_gradients(problem: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard error, over a million draws, of every estimator."""
    logits, cost, surrogate = PROBLEMS[problem]
    alpha = torch.tensor(logits, dtype=F64)
    sums: dict[str, list[Tensor]] = {}
    for chunk in range(CHUNKS):
        leaf = alpha.expand(DRAWS, *alpha.shape).clone().requires_grad_()
        draw = coupled_draw(leaf, uniforms(11, *leaf.shape, offset=chunk), TAU)
        z = torch.eye(alpha.shape[1], dtype=F64)[draw.picks]
        value = cost(z)

        def gradient(loss: Tensor, leaf=leaf) -> Tensor:
            return torch.autograd.grad(loss.sum(), leaf, retain_graph=True)[0].mean(0)

        combined = surrogate(draw.combined)
        found = {
            "full": gradient(surrogate_loss(draw, value, combined)),
            "score": gradient(draw.log_prob),
            "scale 0": gradient(surrogate_loss(draw, value, combined, scale=0.0)),
            "relaxed": gradient(surrogate(draw.relaxed)),
            "conditional": gradient(surrogate(draw.conditional)),
            "straight through": gradient(surrogate(draw.relaxed - draw.relaxed.detach() + z)),
        }
        found["scale 0.3"] = 0.3 * found["full"] + 0.7 * found["scale 0"]
        for name in ("full", "scale 0"):
            found[f"{name} with baseline"] = found[name] - 0.7 * found["score"]
        found["no correction"] = found["full"] + found["conditional"]
        found["correction twice"] = found["full"] - found["conditional"]
        found["pathwise"] = found["relaxed"]
        for name in (*UNBIASED, *BIASED):
            sums.setdefault(name, []).append(found[name])
    stacked = {name: torch.stack(values) for name, values in sums.items()}
    return {n: (s.mean(0), s.std(0) / math.sqrt(CHUNKS)) for n, s in stacked.items()}


@pytest.fixture(scope="module", params=PROBLEMS)
def z_scores(request) -> dict[str, float]:
    want = exact_gradient(request.param)
    found = sampled_gradients(request.param)
    return {n: float(((m - want) / e).abs().max()) for n, (m, e) in found.items()}


def test_exact_gradient_of_the_published_toy():
    want = [0.0109, -0.3745, -0.2349, 0.5986]
    assert exact_gradient("one row")[0].tolist() == pytest.approx(want, abs=5e-5)


@pytest.mark.parametrize("estimator", UNBIASED)
def test_unbiased_against_enumeration(z_scores, estimator):
    assert z_scores[estimator] < 4.5


@pytest.mark.parametrize("estimator", BIASED)
def test_a_wrong_estimator_is_told_apart(z_scores, estimator):
    assert z_scores[estimator] > 20


def test_a_scale_between_is_the_mixture_of_both_ends():
    alpha = torch.randn(8, 2, 3, dtype=F64, requires_grad=True)
    draw = coupled_draw(alpha, uniforms(7, 8, 2, 3), TAU)
    z = torch.eye(3, dtype=F64)[draw.picks]
    gradients = [
        torch.autograd.grad(
            surrogate_loss(draw, two_rows(z), two_rows(draw.combined), scale=s, baseline=b).sum(),
            alpha,
            retain_graph=True,
        )[0]
        for s, b in ((0.0, 0.0), (1.0, 0.0), (0.3, 0.0), (1.0, 0.7))
    ]
    score = torch.autograd.grad(draw.log_prob.sum(), alpha)[0]
    torch.testing.assert_close(gradients[2], 0.7 * gradients[0] + 0.3 * gradients[1])
    torch.testing.assert_close(gradients[3], gradients[1] - 0.7 * score)


def test_choices_follow_the_probabilities():
    alpha = torch.tensor(PROBLEMS["two rows"][0], dtype=F64)
    draws = 200_000
    picks = coupled_draw(alpha.expand(draws, 2, 3), uniforms(8, draws, 2, 3), TAU).picks
    want = alpha.softmax(-1)
    counts = torch.stack([picks[:, row].bincount(minlength=3) for row in range(2)])
    statistic = ((counts - draws * want).square() / (draws * want)).sum()
    # Four degrees of freedom, level 1e-6.
    assert statistic < 33.38
