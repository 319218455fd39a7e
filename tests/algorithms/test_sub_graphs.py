"""Drawing sub-graphs, the gates that run them, and the gradients that come back."""

import itertools
import math

import pytest
import torch

from pyfast_nas import ops
from pyfast_nas.algorithms.sub_graphs import (
    draw_sub_graphs,
    plackett_luce_log_prob,
    single_path_gates,
    stack_tables,
)
from pyfast_nas.nn import MixedOp
from pyfast_nas.nn.mixed_op import mix_edges

LOGITS = (1.0, 0.5, 0.0, -0.5, -1.0)
NOISE = (0.2, -0.1, 0.9, 0.4, 1.3)
PICKS = (0, 2, 1)
GATE_GRADIENTS = (0.7 / 3, -0.3 / 3, 0.5 / 3)
GOLDEN = {
    "shared": (0.127383693, 0.012192827, -0.113920919, -0.007953891, -0.017701710),
    "conditional": (0.116663884, 0.081538952, -0.114067416, -0.026084127, -0.058051293),
}


class Scale(torch.nn.Module):
    """A candidate whose output has the wanted gate gradient under a sum of the outputs."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x):
        return x * self.value


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize("relaxation", GOLDEN)
def test_golden_gradient_through_the_straight_through_layer(relaxation, dtype, tolerance):
    logits = torch.tensor([LOGITS], dtype=dtype, requires_grad=True)
    noise = torch.tensor([NOISE], dtype=dtype)
    weights, indices = ops.gumbel_topk(
        logits, 3, tau=0.5, seed=torch.tensor([0, 0]), relaxation=relaxation, noise=noise
    )
    assert tuple(indices[0].tolist()) == PICKS
    outputs = dict(zip(PICKS, GATE_GRADIENTS, strict=True))
    edge = MixedOp([Scale(outputs.get(k, math.nan)) for k in range(5)])
    x = torch.ones((), dtype=dtype)
    total = 0.0
    for k in range(3):
        gates = single_path_gates({"cell": 1}, indices[:, k].tolist(), weights[:, k])
        y = mix_edges([edge], [x], gates["cell"])
        assert y.item() == torch.tensor(GATE_GRADIENTS[k], dtype=dtype).item(), "bitwise forwards"
        total = total + y
    (gradient,) = torch.autograd.grad(total, logits)
    want = torch.tensor([GOLDEN[relaxation]], dtype=dtype)
    torch.testing.assert_close(gradient, want, rtol=0, atol=tolerance)


def test_golden_score_of_the_ordered_draw():
    logits = torch.tensor([LOGITS], dtype=torch.float64, requires_grad=True)
    log_prob = plackett_luce_log_prob(logits, torch.tensor([PICKS]))
    assert log_prob.item() == pytest.approx(-2.598809102, abs=1e-9)
    (score,) = torch.autograd.grad(log_prob.sum(), logits)
    want = [[0.571344471, -0.343578674, 0.566302099, -0.494274972, -0.299792925]]
    torch.testing.assert_close(score, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-8)


def test_ordered_probabilities_of_the_published_table():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    table = {(0, 1): 0.2, (0, 3): 0.06666667, (1, 0): 0.17142857, (3, 2): 0.02222222}
    for picks, want in table.items():
        got = plackett_luce_log_prob(logits, torch.tensor([picks])).exp().item()
        assert got == pytest.approx(want, abs=1e-8)


def test_score_of_padded_candidates_is_zero():
    logits = torch.tensor([[0.1, 0.4, -math.inf]], dtype=torch.float64, requires_grad=True)
    log_prob = plackett_luce_log_prob(logits, torch.tensor([[1, 0]]))
    assert log_prob.exp().item() == pytest.approx(torch.sigmoid(torch.tensor(0.3)).item())
    (score,) = torch.autograd.grad(log_prob.sum(), logits)
    assert score[0, 2] == 0
    assert score.isfinite().all()


class TestScoreEstimator:
    """Two rows of three candidates, two drawn in each: 36 outcomes, a loss for every one."""

    OUTCOMES = tuple(
        itertools.product(itertools.permutations(range(3), 2), itertools.permutations(range(3), 2))
    )

    def problem(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        losses = torch.randn(36, generator=generator, dtype=torch.float64)
        return logits, losses

    def exact(self, logits, losses):
        """Gradient of the expected loss, from probabilities written out."""
        p = logits.softmax(1)
        expected = sum(
            math.prod(p[row, a] * p[row, b] / (1 - p[row, a]) for row, (a, b) in enumerate(picks))
            * loss
            for picks, loss in zip(self.OUTCOMES, losses, strict=True)
        )
        return torch.autograd.grad(expected, logits)[0]

    @pytest.mark.parametrize("baseline", [0.0, 3.7])
    def test_is_exact_over_all_outcomes(self, baseline):
        logits, losses = self.problem()
        total = torch.zeros_like(logits)
        for picks, loss in zip(self.OUTCOMES, losses, strict=True):
            log_prob = plackett_luce_log_prob(logits, torch.tensor(picks)).sum()
            (score,) = torch.autograd.grad(log_prob, logits)
            total += log_prob.detach().exp() * (loss - baseline) * score
        torch.testing.assert_close(total, self.exact(logits, losses), rtol=0, atol=1e-9)

    def test_wrong_normaliser_is_noticed(self):
        """Control: normalising every rank over all candidates is biased."""
        logits, losses = self.problem()
        total = torch.zeros_like(logits)
        for picks, loss in zip(self.OUTCOMES, losses, strict=True):
            log_prob = plackett_luce_log_prob(logits, torch.tensor(picks)).sum()
            wrong = logits.log_softmax(1).gather(1, torch.tensor(picks)).sum()
            (score,) = torch.autograd.grad(wrong, logits)
            total += log_prob.detach().exp() * loss * score
        assert not torch.allclose(total, self.exact(logits, losses), atol=1e-2)

    def test_is_unbiased_over_a_million_draws(self):
        logits, losses = self.problem()
        draws = 1_000_000
        rows = logits.detach().repeat(draws, 1)
        _, indices = ops.gumbel_topk(rows, 2, tau=1.0, seed=torch.tensor([11, 0]))
        rows.requires_grad_()
        (scores,) = torch.autograd.grad(plackett_luce_log_prob(rows, indices).sum(), rows)
        place = {picks: k for k, picks in enumerate(self.OUTCOMES)}
        code = torch.zeros(3, 3, 3, 3, dtype=torch.int64)
        for ((a, b), (c, d)), k in place.items():
            code[a, b, c, d] = k
        a, b, c, d = indices.view(draws, 4).unbind(1)
        estimates = losses[code[a, b, c, d]].view(-1, 1, 1) * scores.view(draws, 2, 3)
        error = (estimates.mean(0) - self.exact(logits, losses)) / (estimates.std(0) / draws**0.5)
        assert error.abs().max() < 4


class TestDraw:
    ALPHAS = {"a": torch.tensor([[0.3, -0.2]]), "b": torch.tensor([LOGITS] * 3)}  # noqa: RUF012

    def test_rows_of_all_tables_come_from_one_call(self):
        seed = torch.tensor([5, 1])
        drawn = draw_sub_graphs(self.ALPHAS, 2, tau=2.0, seed=seed)
        weights, indices = ops.gumbel_topk(stack_tables(self.ALPHAS), 2, tau=2.0, seed=seed)
        assert torch.equal(drawn.indices, indices)
        assert torch.equal(drawn.weights, weights)
        assert drawn.picks == tuple(map(tuple, indices.t().tolist()))
        gates = drawn.gates(1)
        assert [len(gates[table].active) for table in ("a", "b")] == [1, 3]
        assert gates["b"].active == tuple((k,) for k in drawn.picks[1][1:])

    @pytest.mark.parametrize("assignment", ["rank", "shuffle"])
    def test_sub_graphs_are_mutually_exclusive_and_padding_is_never_drawn(self, assignment):
        for value in range(50):
            drawn = draw_sub_graphs(
                self.ALPHAS, 2, tau=1.0, seed=torch.tensor([value, 0]), assignment=assignment
            )
            assert all(a != b for a, b in zip(*drawn.picks, strict=True))
            assert {picks[0] for picks in drawn.picks} == {0, 1}

    def test_shuffle_deals_the_same_draw_with_its_weights(self):
        seed = torch.tensor([3, 0])
        rank = draw_sub_graphs(self.ALPHAS, 2, tau=1.0, seed=seed)
        shuffled = draw_sub_graphs(self.ALPHAS, 2, tau=1.0, seed=seed, assignment="shuffle")
        assert torch.equal(rank.indices, shuffled.indices)
        for row in range(4):
            by_rank = {rank.picks[k][row]: rank.weights[row, k] for k in range(2)}
            dealt = {shuffled.picks[k][row]: shuffled.weights[row, k] for k in range(2)}
            assert by_rank == dealt

    def test_shuffle_is_uniform_and_independent_of_the_draw(self):
        """Which rank sub-graph 0 holds at a row: 3 equal cells; and rank marginals mix evenly."""
        rows = 30_000
        alphas = {"b": torch.tensor([LOGITS]).repeat(rows, 1)}
        seed = torch.tensor([21, 0])
        drawn = draw_sub_graphs(alphas, 3, tau=1.0, seed=seed, assignment="shuffle")
        held = torch.tensor(drawn.picks[0])
        ranks = (drawn.indices == held.unsqueeze(1)).int().argmax(1)
        counts = torch.bincount(ranks, minlength=3).double()
        chi2 = ((counts - rows / 3) ** 2 / (rows / 3)).sum().item()
        assert chi2 < 27.63, "level 1e-6 at 2 degrees of freedom"
        # Rows are dealt independently: 9 cells of two successive rows.
        pairs = torch.bincount(3 * ranks[::2] + ranks[1::2], minlength=9).double()
        expected = rows / 2 / 9
        assert ((pairs - expected) ** 2 / expected).sum().item() < 42.70

    def test_first_sub_graph_by_rank_follows_the_softmax(self):
        rows = 30_000
        alphas = {"b": torch.tensor([LOGITS]).repeat(rows, 1)}
        drawn = draw_sub_graphs(alphas, 2, tau=1.0, seed=torch.tensor([4, 0]))
        p = torch.tensor(LOGITS, dtype=torch.float64).softmax(0)
        second = torch.tensor([0.302588, 0.287245, 0.200104, 0.129160, 0.080902])
        for picks, law in ((drawn.picks[0], p), (drawn.picks[1], second.double())):
            counts = torch.bincount(torch.tensor(picks), minlength=5).double()
            chi2 = ((counts - rows * law) ** 2 / (rows * law)).sum().item()
            assert chi2 < 33.38, "level 1e-6 at 4 degrees of freedom"
