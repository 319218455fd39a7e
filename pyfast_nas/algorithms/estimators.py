r"""Unbiased estimators on draws without replacement, and the distributions they are compared with.

With :math:`p` the softmax of a row of logits, ``ops.gumbel_topk`` draws Plackett-Luce samples; the
functions here weigh such draws so that an expectation, or its gradient, comes out right. They are
plain PyTorch, for rows of a few dozen candidates. The set probabilities and the estimators are as
printed by Kool et al.; computing them by one recursion over subsets of the set is ours.
"""

import itertools
import math

import torch
from torch import Tensor

__all__ = [
    "inclusion_probabilities",
    "log_set_probability",
    "perturb_and_map_jacobian",
    "simple_marginals",
    "unordered_set_estimate",
    "unordered_set_gradient",
]


def log_set_probability(logits: Tensor, indices: Tensor) -> Tensor:
    r"""Return the log-probability of drawing a set without replacement, in whatever order.

    Args:
        logits: Architecture parameters; ``-inf`` masks a candidate.
        indices: Members of the set, in any order, at most about a dozen.

    Shape:
        logits ``[rows, num_ops]``, indices ``[rows, k]`` -> ``[rows]``.

    Example:
        >>> logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
        >>> round(log_set_probability(logits, torch.tensor([[1, 0]])).exp().item(), 6)
        0.371429

    References:
        Kool, van Hoof & Welling, "Estimating Gradients for Discrete Random Variables by Sampling
        without Replacement", ICLR 2020.
    """
    _require_k("log_set_probability", indices.shape[1], logits.shape[1])
    return _completions(torch.log_softmax(logits, 1), indices)[0]


def inclusion_probabilities(logits: Tensor, k: int) -> Tensor:
    """Return the probability of each candidate to be among k draws, by adding up all sets.

    Args:
        logits: Architecture parameters of one row.
        k: Draws without replacement; the work grows as the number of sets of k candidates.

    Shape:
        logits ``[num_ops]`` -> ``[num_ops]``, which sums to k.

    Example:
        >>> inclusion_probabilities(torch.tensor([0.4, 0.3, 0.2, 0.1]).log(), 2)
        tensor([0.7159, 0.6083, 0.4413, 0.2345])
    """
    _require_k("inclusion_probabilities", k, len(logits))
    sets = torch.tensor(list(itertools.combinations(range(len(logits)), k)), device=logits.device)
    probabilities = log_set_probability(logits.expand(len(sets), -1), sets).exp()
    return torch.zeros_like(logits).scatter_add(
        0, sets.flatten(), probabilities.repeat_interleave(k)
    )


def unordered_set_estimate(logits: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    r"""Estimate :math:`E_p[f]` from the values at k candidates drawn without replacement.

    .. math:: \sum_{s \in S} p_s R(S, s) f_s, \qquad
              R(S, s) = P^{D \setminus \{s\}}(S \setminus \{s\}) / P(S)

    Args:
        logits: Architecture parameters; ``-inf`` masks a candidate.
        indices: What was drawn, in any order.
        values: The function at each of them.

    Shape:
        logits ``[rows, num_ops]``, indices and values ``[rows, k]`` -> ``[rows]``.

    Example:
        >>> drawn = torch.tensor([[2, 0, 1]])
        >>> round(unordered_set_estimate(torch.zeros(1, 3), drawn, drawn + 1.0).item(), 5)
        2.0

    References:
        Kool, van Hoof & Welling, ICLR 2020, the unordered set estimator.
    """
    _require_k("unordered_set_estimate", indices.shape[1], logits.shape[1])
    p, first, _ = _ratios(logits, indices)
    return (p * first * values).sum(1)


def unordered_set_gradient(logits: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    r"""Estimate :math:`\nabla E_p[f]` with the baseline that the other draws make.

    .. math:: \sum_{s \in S} \nabla p_s\, R(S, s)
              \Big(f_s - \sum_{t \in S} p_t R^{D \setminus s}(S, t) f_t\Big)

    With one draw there is nothing to subtract, and it is the score-function estimate. It is that
    of one row while all others are fixed: k sub-graphs drawn row by row are no sample without
    replacement of whole architectures, for which there is `stochastic_beam_search`.

    Args:
        logits: Architecture parameters; ``-inf`` masks a candidate.
        indices: What was drawn, in any order.
        values: The function at each of them.

    Returns:
        The gradient of each row's logits.

    Shape:
        logits ``[rows, num_ops]``, indices and values ``[rows, k]`` -> ``[rows, num_ops]``.

    Example:
        >>> drawn = torch.tensor([[1, 0]])
        >>> unordered_set_gradient(torch.zeros(1, 2), drawn, torch.tensor([[1.0, 0.0]]))
        tensor([[-0.2500,  0.2500]])

    References:
        Kool, van Hoof & Welling, ICLR 2020, its policy gradient with built-in baseline.
    """
    _require_k("unordered_set_gradient", indices.shape[1], logits.shape[1])
    p, first, second = _ratios(logits, indices)
    baseline = (second * (p * values).unsqueeze(1)).sum(2) if indices.shape[1] > 1 else 0
    factors = p * first * (values - baseline)
    # The derivative of p_s is p_s (1_s - p).
    pulled = torch.zeros_like(logits).scatter_add(1, indices, factors)
    return pulled - factors.sum(1, keepdim=True) * torch.softmax(logits, 1)


def perturb_and_map_jacobian(noise: Tensor, indices: Tensor) -> Tensor:
    r"""Estimate how the probability to be drawn, of each candidate, moves with each logit.

    .. math:: \partial E[y_i] / \partial \alpha_j = E[y_i (1 - e^{-G_j})]

    with y the k-hot vector of what was drawn with the Gumbel noise G, whose log-density has the
    derivative :math:`-(1 - e^{-g})`.

    Args:
        noise: Noise of the draw, ``ops.gumbel_noise(seed, rows, num_ops)``.
        indices: What ``ops.gumbel_topk`` drew with the same seed.

    Returns:
        One term of the mean for each row: entry i, j belongs to candidate i and logit j.

    Shape:
        noise ``[rows, num_ops]``, indices ``[rows, k]`` -> ``[rows, num_ops, num_ops]``.

    Example:
        >>> from pyfast_nas import ops
        >>> seed, logits = torch.tensor([3, 0]), torch.zeros(100_000, 2)
        >>> noise = ops.gumbel_noise(seed, 100_000, 2)
        >>> _, drawn = ops.gumbel_topk(logits, 1, tau=1.0, seed=seed)
        >>> bool((perturb_and_map_jacobian(noise, drawn).mean(0)[0, 0] - 0.25).abs() < 0.01)
        True

    References:
        Berthet et al., "Learning with Differentiable Perturbed Optimizers", NeurIPS 2020.
    """
    _require_k("perturb_and_map_jacobian", indices.shape[1], noise.shape[1])
    hot = torch.zeros_like(noise).scatter(1, indices, 1)
    return hot.unsqueeze(2) * -torch.expm1(-noise).unsqueeze(1)


def simple_marginals(logits: Tensor, k: int) -> Tensor:
    r"""Return the marginals of independent Bernoulli variables given that k of them are one.

    .. math:: \mu_i = r_i\, e_{k-1}(r_{\setminus i}) / e_k(r), \qquad r_i = e^{\alpha_i}

    with the elementary symmetric polynomials e and the odds r. Not the distribution that
    ``ops.gumbel_topk`` samples, whose marginals are `inclusion_probabilities`.

    Args:
        logits: Log-odds of the variables.
        k: How many are one.

    Returns:
        Differentiable marginals, each row summing to k.

    Shape:
        logits ``[rows, num_ops]`` -> ``[rows, num_ops]``.

    Example:
        >>> odds = torch.tensor([[0.3, 0.6, 0.5, 0.2]]).logit()
        >>> simple_marginals(odds, 2)
        tensor([[0.3568, 0.7622, 0.6595, 0.2216]])

    References:
        Ahmed, Zeng, Niepert & Van den Broeck, "SIMPLE: A Gradient Estimator for k-Subset Sampling",
        ICLR 2023.
    """
    _require_k("simple_marginals", k, logits.shape[1])
    others = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    without = logits.unsqueeze(1).masked_fill(others, _NOTHING)
    return (logits + _log_symmetric(without, k - 1) - _log_symmetric(logits, k).unsqueeze(1)).exp()


def _require_k(function: str, k: int, candidates: int) -> None:
    if not 1 <= k <= candidates:
        raise ValueError(f"{function}: k must be from 1 to {candidates}, got {k}")


def _completions(log_p: Tensor, indices: Tensor) -> Tensor:
    """Log-probability that, once some of the set are drawn, the rest of it is drawn next.

    Entry m of ``[2^k, rows]`` belongs to the members whose bits m has; entry 0 is that of the whole
    set, entry of one member s what remains of the set where s does not exist at all.
    """
    k = indices.shape[1]
    members = log_p.gather(1, indices)
    found: dict[int, Tensor] = {2**k - 1: log_p.new_zeros(len(log_p))}
    for drawn in range(2**k - 2, -1, -1):
        bits = [bit for bit in range(k) if drawn >> bit & 1]
        taken = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, indices[:, bits], True)
        left = log_p.masked_fill(taken, -math.inf).logsumexp(1)
        ways = [
            members[:, bit] + found[drawn | 1 << bit] for bit in range(k) if not drawn >> bit & 1
        ]
        found[drawn] = torch.stack(ways).logsumexp(0) - left
    return torch.stack([found[drawn] for drawn in range(2**k)])


def _ratios(logits: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return p of the members, R(S, s) ``[rows, k]`` and R^{D without s}(S, t) ``[rows, k, k]``."""
    log_p = torch.log_softmax(logits, 1)
    found, k = _completions(log_p, indices), indices.shape[1]
    one = torch.stack([found[1 << s] for s in range(k)])
    two = torch.stack([torch.stack([found[1 << s | 1 << t] for t in range(k)]) for s in range(k)])
    first, second = (one - found[0]).exp().T, (two - one.unsqueeze(1)).exp().permute(2, 0, 1)
    return log_p.gather(1, indices).exp(), first, second


_NOTHING = -1e30  # the logarithm of zero, with a derivative


def _log_symmetric(logits: Tensor, k: int) -> Tensor:
    """Logarithm of the k-th elementary symmetric polynomial of exp(logits) along the last dim."""
    nothing = torch.full_like(logits[..., 0], _NOTHING)
    logs = [torch.zeros_like(nothing)] + [nothing] * k
    for log_r in logits.unbind(-1):
        logs = [logs[0]] + [
            torch.logaddexp(same, log_r + fewer) for fewer, same in itertools.pairwise(logs)
        ]
    return logs[k]
