"""Distribution of the samples: Plackett-Luce, independence, the law of the noise.

Seeds are fixed, so each statistic is one number. Bounds are the upper points of chi-square at level
1e-6, which a right sampler stays far below and the wrong ones at the end of this file exceed.
"""

import itertools
import math

import pytest
import torch

from pyfast_nas import ops
from pyfast_nas.ops import reference

# Upper critical values of chi-square at level 1e-6 by degrees of freedom.
CRITICAL = {1: 23.93, 3: 30.66, 4: 33.38, 7: 40.52, 9: 44.81, 11: 48.87, 16: 59.48, 19: 63.68}
P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
LOGITS = P.log().float()
DRAWS = 200_000


def plackett_luce(p, picks):
    probability, left = 1.0, 1.0
    for pick in picks:
        probability *= p[pick] / left
        left -= p[pick]
    return probability


def sample(logits, k, draws, seed, offset=0):
    rows = logits.expand(draws, -1)
    return ops.gumbel_topk(rows, k, tau=1.0, seed=torch.tensor([seed, offset]))[1]


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def outcome_counts(indices, columns):
    """Count each ordered outcome; returns counts in the order of itertools.permutations."""
    k = indices.shape[1]
    code = sum(indices[:, r] * columns**r for r in range(k))
    counts = torch.bincount(code, minlength=columns**k)
    orders = list(itertools.permutations(range(columns), k))
    codes = [sum(pick * columns**r for r, pick in enumerate(order)) for order in orders]
    return counts[codes].double(), orders


@pytest.mark.promise("G2")
@pytest.mark.parametrize("seed", [1234, 5678, -9])
def test_ordered_pairs_follow_plackett_luce(seed):
    counts, orders = outcome_counts(sample(LOGITS, 2, DRAWS, seed), 4)
    assert counts.sum() == DRAWS
    want = torch.tensor([plackett_luce(P.tolist(), order) for order in orders]).double()
    assert chi_square(counts, want) < CRITICAL[11]


@pytest.mark.promise("G2")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_first_pick_follows_the_softmax(seed):
    logits = torch.tensor([1, 0.5, 0, -0.5, -1])
    counts = torch.bincount(sample(logits, 1, DRAWS, seed)[:, 0], minlength=5).double()
    assert chi_square(counts, torch.softmax(logits.double(), 0)) < CRITICAL[4]


def test_each_rank_has_its_marginal():
    logits = torch.tensor([1, 0.5, 0, -0.5, -1])
    p = torch.softmax(logits.double(), 0).tolist()
    indices = sample(logits, 3, DRAWS, 77)
    for rank in range(3):
        marginal = torch.zeros(5, dtype=torch.float64)
        for order in itertools.permutations(range(5), rank + 1):
            marginal[order[-1]] += plackett_luce(p, order)
        if rank == 1:
            known = torch.tensor([0.302588, 0.287245, 0.200104, 0.129160, 0.080902]).double()
            torch.testing.assert_close(marginal, known, rtol=0, atol=1e-6)
        counts = torch.bincount(indices[:, rank], minlength=5).double()
        assert chi_square(counts, marginal) < CRITICAL[4]


def test_inclusion_by_the_wald_statistic():
    """The counts are correlated, so a plain chi-square would be the wrong yardstick."""
    pairs = list(itertools.combinations(range(4), 2))
    sets = {
        pair: sum(plackett_luce(P.tolist(), order) for order in itertools.permutations(pair))
        for pair in pairs
    }
    joint = torch.zeros(4, 4, dtype=torch.float64)
    for (i, j), probability in sets.items():
        joint[i, i] += probability
        joint[j, j] += probability
        joint[i, j] = joint[j, i] = probability
    inclusion = joint.diagonal().clone()
    known = torch.tensor([0.71587302, 0.60833333, 0.44126984, 0.23452381], dtype=P.dtype)
    torch.testing.assert_close(inclusion, known, rtol=0, atol=1e-8)
    covariance = joint - inclusion.outer(inclusion)
    counts = torch.bincount(sample(LOGITS, 2, DRAWS, 99).flatten(), minlength=4).double()
    d = (counts / DRAWS - inclusion)[:3]
    assert float(DRAWS * d @ torch.linalg.solve(covariance[:3, :3], d)) < CRITICAL[3]


def contingency(a, b, columns):
    """Chi-square of independence of two lists of picks, (columns - 1)^2 degrees of freedom."""
    table = torch.bincount(a * columns + b, minlength=columns**2).view(columns, columns).double()
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def test_rows_offsets_and_seeds_are_independent():
    logits = torch.tensor([1, 0.5, 0, -0.5, -1])
    picks = sample(logits, 1, DRAWS, 5)[:, 0]
    assert contingency(picks[:-1], picks[1:], 5) < CRITICAL[16]
    for other in [(5, 1), (6, 0), (5 + 2**32, 0), (5, 2**32)]:
        assert contingency(picks, sample(logits, 1, DRAWS, *other)[:, 0], 5) < CRITICAL[16]
    u = [ops.philox_uniform(torch.tensor([5, 0]), DRAWS, 1, stream=s)[:, 0] for s in (0, 1, 2)]
    for a, b in itertools.combinations(u, 2):
        assert contingency((a * 5).long(), (b * 5).long(), 5) < CRITICAL[16]


def test_the_noise_has_the_gumbel_law():
    noise = ops.gumbel_noise(torch.tensor([31, 0]), 1000, 1000).double().flatten()
    n = noise.numel()
    variance = math.pi**2 / 6
    assert abs(float(noise.mean()) - 0.5772157) < 5 * math.sqrt(variance / n)
    # The fourth central moment of the law is 5.4 variance^2, so Var(s^2) is 4.4 variance^2 / n.
    assert abs(float(noise.var()) - variance) < 5 * math.sqrt(4.4 / n) * variance
    centred = noise - noise.mean()
    lag = float((centred[:-1] * centred[1:]).mean() / centred.square().mean())
    assert abs(lag) < 4 / math.sqrt(n)
    ordered = noise.sort().values
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    law = torch.exp(-torch.exp(-ordered))
    distance = max(float((steps[1:] - law).max()), float((law - steps[:-1]).max()))
    # Kolmogorov's bound at level 1e-6.
    assert distance < math.sqrt(math.log(2 / 1e-6) / 2 / n)


def test_the_bounds_catch_wrong_samplers():
    """Negative controls: noise that is nearly right, and sampling with replacement."""
    u = ops.philox_uniform(torch.tensor([1234, 0]), DRAWS, 4)
    want = torch.tensor([plackett_luce(P.tolist(), o) for o in itertools.permutations(range(4), 2)])

    def statistic(noise):
        indices = (LOGITS + noise).topk(2).indices
        return chi_square(outcome_counts(indices, 4)[0], want.double())

    assert statistic(reference.gumbel_from_uniform(u)) < CRITICAL[11]
    assert statistic(reference.gumbel_from_uniform(u.clamp(0.05, 0.95))) > CRITICAL[11]
    assert statistic(-torch.log(1 - u)) > CRITICAL[11]
    assert statistic(reference.gumbel_from_uniform(u).roll(1, 0) * 1.05) > CRITICAL[11]
