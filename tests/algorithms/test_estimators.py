"""Estimators on draws without replacement: reference tables, enumeration, Monte Carlo.

Bounds on Monte Carlo are 4.5 standard errors with fixed seeds; a wrong variant must exceed them.
"""

import itertools
import math

import pytest
import torch

from pyfast_nas import ops
from pyfast_nas.algorithms import estimators
from pyfast_nas.algorithms.beam_search import stochastic_beam_search
from pyfast_nas.algorithms.sub_graphs import plackett_luce_log_prob

P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LOGITS = P.log()
VALUES = torch.tensor([1.3, -0.4, 2.0, 0.7], dtype=torch.float64)
ORDERED = {
    (0, 1): 0.20000000,
    (0, 2): 0.13333333,
    (0, 3): 0.06666667,
    (1, 0): 0.17142857,
    (1, 2): 0.08571429,
    (1, 3): 0.04285714,
    (2, 0): 0.10000000,
    (2, 1): 0.07500000,
    (2, 3): 0.02500000,
    (3, 0): 0.04444444,
    (3, 1): 0.03333333,
    (3, 2): 0.02222222,
}
UNORDERED = {
    (0, 1): 0.37142857,
    (0, 2): 0.23333333,
    (0, 3): 0.11111111,
    (1, 2): 0.16071429,
    (1, 3): 0.07619048,
    (2, 3): 0.04722222,
}
INCLUSION = (0.71587302, 0.60833333, 0.44126984, 0.23452381)


def every_set(k, columns=4):
    return torch.tensor(list(itertools.combinations(range(columns), k)))


def rows_of(sets, logits=LOGITS):
    return logits.expand(len(sets), -1)


def exact_gradient(values, logits=LOGITS):
    logits = logits.clone().requires_grad_()
    (torch.softmax(logits, 0) * values).sum().backward()
    return logits.grad


class TestSetProbabilities:
    def test_ordered_table(self):
        orders = torch.tensor(list(ORDERED))
        found = plackett_luce_log_prob(rows_of(orders), orders).exp()
        want = torch.tensor(list(ORDERED.values()), dtype=torch.float64)
        torch.testing.assert_close(found, want, rtol=0, atol=5e-9)

    def test_unordered_table(self):
        sets = torch.tensor(list(UNORDERED))
        want = torch.tensor(list(UNORDERED.values()), dtype=torch.float64)
        for members in (sets, sets.flip(1)):
            found = estimators.log_set_probability(rows_of(sets), members).exp()
            torch.testing.assert_close(found, want, rtol=0, atol=5e-9)

    def test_inclusion_table(self):
        want = torch.tensor(INCLUSION, dtype=torch.float64)
        found = estimators.inclusion_probabilities(LOGITS, 2)
        torch.testing.assert_close(found, want, rtol=0, atol=5e-9)

    @pytest.mark.parametrize("k", [1, 2, 3, 4])
    def test_a_set_is_the_sum_of_its_orders(self, k):
        for members in every_set(k):
            orders = torch.tensor(list(itertools.permutations(members.tolist())))
            want = plackett_luce_log_prob(rows_of(orders), orders).exp().sum()
            found = estimators.log_set_probability(LOGITS[None], members[None]).exp()
            torch.testing.assert_close(found[0], want, rtol=1e-14, atol=0)

    def test_unlikely_sets_keep_their_digits(self):
        """In the logarithm a set of probability exp(-1000) is a number like another."""
        logits = torch.tensor([[0.0, -500.0, -501.0]], dtype=torch.float64)
        found = estimators.log_set_probability(logits, torch.tensor([[1, 2]]))
        # Both orders draw one of two next to a candidate of probability one.
        last = math.log1p(math.exp(-500.0)), math.log1p(math.exp(-501.0))
        want = -1001.0 + math.log(math.exp(-last[0]) + math.exp(-last[1]))
        torch.testing.assert_close(found.item(), want, rtol=1e-13, atol=0)

    def test_masked_candidates_do_not_count(self):
        logits = torch.cat([LOGITS, torch.tensor([-math.inf]).double()])[None]
        found = estimators.log_set_probability(logits, torch.tensor([[0, 2]]))
        want = estimators.log_set_probability(LOGITS[None], torch.tensor([[0, 2]]))
        torch.testing.assert_close(found, want, rtol=1e-14, atol=0)


class TestUnorderedSet:
    @pytest.mark.parametrize("k", [1, 2, 3, 4])
    def test_the_estimate_is_unbiased_by_enumeration(self, k):
        sets = every_set(k)
        weights = estimators.log_set_probability(rows_of(sets), sets).exp()
        found = estimators.unordered_set_estimate(rows_of(sets), sets, VALUES[sets])
        torch.testing.assert_close(weights @ found, P @ VALUES, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("k", [1, 2, 3, 4])
    def test_the_gradient_is_unbiased_by_enumeration(self, k):
        sets = every_set(k)
        weights = estimators.log_set_probability(rows_of(sets), sets).exp()
        found = estimators.unordered_set_gradient(rows_of(sets), sets, VALUES[sets])
        torch.testing.assert_close(weights @ found, exact_gradient(VALUES), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("k", [2, 3])
    def test_wrong_variants_are_biased(self, k):
        """Terms weighted by p alone, and a mean of score-function terms over the set."""
        sets = every_set(k)
        weights = estimators.log_set_probability(rows_of(sets), sets).exp()
        plain = (P[sets] * VALUES[sets]).sum(1) / P[sets].sum(1)
        assert abs(float(weights @ plain - P @ VALUES)) > 1e-3
        scores = torch.eye(4, dtype=torch.float64)[sets] - P
        mean = (scores * VALUES[sets].unsqueeze(2)).mean(1)
        assert float((weights @ mean - exact_gradient(VALUES)).abs().max()) > 1e-2

    def test_the_baseline_must_leave_the_member_out(self):
        """Subtracting the estimate itself, with R(S, t) in place of R without s, is biased."""
        sets = every_set(2)
        weights = estimators.log_set_probability(rows_of(sets), sets).exp()
        estimate = estimators.unordered_set_estimate(rows_of(sets), sets, VALUES[sets])
        centred = VALUES[sets] - estimate.unsqueeze(1)
        p, first, _ = estimators._ratios(rows_of(sets), sets)
        scores = torch.eye(4, dtype=torch.float64)[sets] - P
        wrong = (scores * (p * first * centred).unsqueeze(2)).sum(1)
        assert float((weights @ wrong - exact_gradient(VALUES)).abs().max()) > 1e-2

    def test_all_candidates_give_the_gradient_without_noise(self):
        found = estimators.unordered_set_gradient(
            LOGITS[None], torch.tensor([[3, 1, 0, 2]]), VALUES[[3, 1, 0, 2]][None]
        )
        torch.testing.assert_close(found[0], exact_gradient(VALUES), rtol=0, atol=1e-14)

    def test_draws_of_the_sampler(self):
        draws = 100_000
        _, drawn = ops.gumbel_topk(LOGITS.expand(draws, -1), 2, tau=1.0, seed=torch.tensor([11, 0]))
        terms = estimators.unordered_set_gradient(rows_of(drawn), drawn, VALUES[drawn])
        assert_mean(terms, exact_gradient(VALUES))


def standard_errors(terms, want):
    """Largest distance of the mean from what it should be, in standard errors."""
    error = terms.std(0) / math.sqrt(len(terms))
    return float(((terms.mean(0) - want).abs() / error.clamp(min=1e-300)).max())


def assert_mean(terms, want):
    assert standard_errors(terms, want) < 4.5


def exact_jacobian(k):
    return torch.autograd.functional.jacobian(
        lambda x: estimators.inclusion_probabilities(x, k), LOGITS
    )


class TestPerturbAndMap:
    DRAWS = 200_000

    def draw(self, k, seed):
        seed = torch.tensor([seed, 0])
        noise = -torch.log(-torch.log(ops.philox_uniform(seed, self.DRAWS, 4).double()))
        _, drawn = ops.gumbel_topk(rows_of(noise), k, tau=1.0, seed=seed)
        return noise, drawn

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_the_mean_is_the_jacobian(self, k):
        noise, drawn = self.draw(k, 20 + k)
        assert_mean(estimators.perturb_and_map_jacobian(noise, drawn), exact_jacobian(k))

    def test_one_draw_has_the_jacobian_of_the_softmax(self):
        want = P.diag() - P.outer(P)
        torch.testing.assert_close(exact_jacobian(1), want, rtol=0, atol=1e-14)

    def test_wrong_variants_fail(self):
        """The density's sign, another law's score, and keys in place of noise."""
        noise, drawn = self.draw(2, 22)
        hot = torch.zeros_like(noise).scatter(1, drawn, 1).unsqueeze(2)
        want = exact_jacobian(2)
        for wrong in (1 - noise.exp().clamp(max=1e3), noise, 1 - torch.exp(-noise - LOGITS)):
            assert standard_errors(hot * wrong.unsqueeze(1), want) > 10


class TestSimple:
    THETA = torch.tensor([[0.3, 0.6, 0.5, 0.2]], dtype=torch.float64)

    def test_known_marginals(self):
        found = estimators.simple_marginals(self.THETA.logit(), 2)[0]
        want = torch.tensor([0.3568, 0.7622, 0.6595, 0.2216], dtype=torch.float64)
        torch.testing.assert_close(found, want, rtol=0, atol=5e-5)

    @pytest.mark.parametrize("k", [1, 2, 3, 4])
    def test_marginals_by_enumeration(self, k):
        hot = torch.zeros(math.comb(4, k), 4, dtype=torch.float64).scatter(1, every_set(k), 1)
        odds = self.THETA / (1 - self.THETA)
        weights = odds.pow(hot).prod(1)
        want = (weights / weights.sum()) @ hot
        found = estimators.simple_marginals(self.THETA.logit(), k)[0]
        torch.testing.assert_close(found, want, rtol=0, atol=1e-14)

    def test_marginals_have_derivatives(self):
        logits = self.THETA.logit().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: estimators.simple_marginals(x, 2), logits)

    def test_marginals_of_extreme_odds(self):
        found = estimators.simple_marginals(torch.tensor([[900.0, 0.0, -900.0]]), 2)
        torch.testing.assert_close(found, torch.tensor([[1.0, 1.0, 0.0]]))

    def test_the_sampler_does_not_sample_it(self):
        known = {
            "weights": (self.THETA.log(), (0.4120, 0.6856, 0.6168, 0.2857)),
            "odds": (self.THETA.logit(), (0.3287, 0.8024, 0.6716, 0.1973)),
        }
        simple = estimators.simple_marginals(self.THETA.logit(), 2)[0]
        for logits, inclusion in known.values():
            want = torch.tensor(inclusion, dtype=torch.float64)
            found = estimators.inclusion_probabilities(logits[0], 2)
            torch.testing.assert_close(found, want, rtol=0, atol=5e-5)
            rows, seed = logits.expand(100_000, -1), torch.tensor([5, 0])
            drawn = ops.gumbel_topk(rows, 2, tau=1.0, seed=seed)[1]
            hot = torch.zeros(100_000, 4, dtype=torch.float64).scatter(1, drawn, 1)
            assert_mean(hot, found)
            assert standard_errors(hot, simple) > 10


class TestStochasticBeamSearch:
    TABLE = torch.tensor([[0.5, 0.0, -1.0], [0.2, -0.3, -math.inf]], dtype=torch.float64)

    def joint(self):
        """Log-probabilities of the six architectures, numbered by 3 * first + second."""
        log_p = torch.log_softmax(self.TABLE, 1)
        return (log_p[0][:, None] + log_p[1]).flatten()

    def test_it_draws_the_top_of_the_joint(self):
        draws, k = 100_000, 2
        beam = stochastic_beam_search(self.TABLE, k, seed=torch.tensor([8, 0]), draws=draws)
        joint = self.joint()
        numbers = beam.choices[..., 0] * 3 + beam.choices[..., 1]
        torch.testing.assert_close(beam.log_probs, joint[numbers])
        leaves = (joint > -math.inf).nonzero()[:, 0].tolist()
        orders = torch.tensor(list(itertools.permutations(leaves, k)))
        want = plackett_luce_log_prob(joint.expand(len(orders), -1), orders).exp()
        codes = torch.bincount(numbers @ torch.tensor([9, 1]), minlength=81)
        counts = codes[orders @ torch.tensor([9, 1])].double()
        assert counts.sum() == draws
        statistic = float(((counts - draws * want) ** 2 / (draws * want)).sum())
        assert statistic < 80.4  # chi-square of 29 degrees of freedom at level 1e-6
        shifted = want.roll(1)
        assert float(((counts - draws * shifted) ** 2 / (draws * shifted)).sum()) > 1000

    def test_weights_make_sums_unbiased(self):
        draws = 100_000
        values = torch.arange(9, dtype=torch.float64).square()
        beam = stochastic_beam_search(self.TABLE, 3, seed=torch.tensor([9, 0]), draws=draws)
        numbers = beam.choices[..., 0] * 3 + beam.choices[..., 1]
        terms = (beam.weights * values[numbers]).sum(1, keepdim=True)
        want = (self.joint().exp() * values).sum()
        assert_mean(terms, want)
        plain = (beam.log_probs.exp() * values[numbers]).sum(1, keepdim=True)
        assert standard_errors(plain, want) > 10

    def test_all_architectures_and_no_more(self):
        beam = stochastic_beam_search(self.TABLE, 6, seed=torch.tensor([1, 0]))
        assert len(set(map(tuple, beam.choices[0].tolist()))) == 6
        torch.testing.assert_close(beam.weights[0], beam.log_probs[0].exp())
        for k in (0, 7):
            with pytest.raises(ValueError, match="between 1 and the 6 architectures"):
                stochastic_beam_search(self.TABLE, k, seed=torch.tensor([1, 0]))

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_logits_that_are_no_logits_are_refused(self, value):
        table = self.TABLE.clone()
        table[1, 2] = value
        words = f"logits must be finite or minus infinity, got {value} in row 1, column 2"
        with pytest.raises(ValueError, match=words):
            stochastic_beam_search(table, 2, seed=torch.tensor([1, 0]))


@pytest.mark.parametrize("k", [0, 4])
def test_more_draws_than_candidates_or_none_are_refused(k):
    logits, drawn = torch.zeros(1, 3), torch.zeros(1, k, dtype=torch.int64)
    for call in (
        lambda: estimators.inclusion_probabilities(logits[0], k),
        lambda: estimators.simple_marginals(logits, k),
        lambda: estimators.log_set_probability(logits, drawn),
        lambda: estimators.unordered_set_estimate(logits, drawn, drawn),
        lambda: estimators.unordered_set_gradient(logits, drawn, drawn),
        lambda: estimators.perturb_and_map_jacobian(logits, drawn),
    ):
        with pytest.raises(ValueError, match=f": k must be from 1 to 3, got {k}"):
            call()
