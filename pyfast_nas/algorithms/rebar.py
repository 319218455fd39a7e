r"""Unbiased gradients of an expected cost by sampled architecture, differentiable cost or not.

Vahdat, Mallya, Liu & Kautz, "UNAS: Differentiable Architecture Search Meets Reinforcement
Learning", CVPR 2020, arXiv 1912.07651; the estimator is REBAR (Tucker et al., NeurIPS 2017,
arXiv 1703.07370).

With one-hot choices z, any cost L, a differentiable surrogate c of it and a factor
:math:`\eta` on the surrogate:

.. math::
    \nabla_\alpha \mathbb{E}[L(z)] = \mathbb{E}\Big[
        (L(z) - \eta c(\zeta)) \nabla_\alpha \log p(z)
        + \eta \nabla_\alpha c(\zeta) - \eta \nabla_\alpha c(\tilde\zeta) \Big] \quad (1)

where :math:`\zeta` is the Gumbel softmax of the noise that z came from, and :math:`\tilde\zeta` the
same relaxation drawn conditionally on z. As printed: the estimator and the conditional draw. As in
the authors' code: one pass at :math:`\zeta - \tilde\zeta + \mathrm{sg}(\tilde\zeta)` gives both
gradients of c. Ours: everything stays in logarithms, so that no uniform has to be clamped, which
would bias the draw; the factor, and a baseline.
"""

import dataclasses
import math

import torch
from torch import Tensor

__all__ = ["CoupledDraw", "coupled_draw", "soften", "surrogate_loss"]


@dataclasses.dataclass(frozen=True)
class CoupledDraw:
    """One choice per row, and two relaxations that agree in value and differ in derivative.

    Attributes:
        picks: The drawn candidate of every row, int64.
        log_prob: Log-probability of all rows' choices together.
        relaxed: Gumbel softmax of the noise of the draw, differentiable in the logits.
        conditional: The same numbers, as a draw under the condition of the choices.

    Shape:
        picks ``[..., rows]``, log_prob ``[...]``, relaxations ``[..., rows, num_ops]``.
    """

    picks: Tensor
    log_prob: Tensor
    relaxed: Tensor
    conditional: Tensor

    @property
    def flags(self) -> Tensor:
        """The choices as flags, bool ``[..., rows, num_ops]``."""
        nothing = torch.zeros_like(self.relaxed, dtype=torch.bool)
        return nothing.scatter(-1, self.picks.unsqueeze(-1), True)

    @property
    def combined(self) -> Tensor:
        """Relaxed weights whose gradient is that of ``relaxed`` minus that of ``conditional``."""
        return self.relaxed - self.conditional + self.conditional.detach()


def coupled_draw(logits: Tensor, uniforms: Tensor, tau: float) -> CoupledDraw:
    r"""Draw one candidate of every row, with the relaxations that :func:`surrogate_loss` wants.

    The keys :math:`\kappa_i = \log p_i - \log(-\log u_i)` choose :math:`k = \arg\max \kappa`. Given
    k, uniforms v would have led to the same keys:

    .. math::
        -\log v_k = \frac{-\log u_k}{p_k}, \qquad -\log v_i = -\log u_i + p_i \log v_k

    and with k and v held, the keys are rebuilt such that only the probabilities in them move:

    .. math::
        \tilde\kappa_k = -\log(-\log v_k), \qquad
        \tilde\kappa_i = -\log\Big(\frac{-\log v_i}{p_i} - \log v_k\Big)

    Args:
        logits: Architecture parameters; ``-inf`` masks a candidate. float16 and bfloat16 are
            computed in float32.
        uniforms: Noise inside the open interval (0, 1), as `pyfast_nas.ops.philox_uniform` gives.
        tau: Temperature of both relaxations, greater than zero.

    Shape:
        logits and uniforms ``[..., rows, num_ops]``.

    Raises:
        ValueError: If ``tau`` or a shape is wrong, a uniform is 0 or 1, a logit is NaN or +inf,
            or a row has no candidate.

    Example:
        >>> from pyfast_nas import ops
        >>> uniforms = ops.philox_uniform(torch.tensor([0, 1]), 2, 4)
        >>> draw = coupled_draw(torch.zeros(2, 4), uniforms, tau=0.4)
        >>> draw.picks.shape, bool(torch.allclose(draw.relaxed, draw.conditional))
        (torch.Size([2]), True)

    References:
        Tucker et al., NeurIPS 2017, section 3 and appendix A. Vahdat et al., CVPR 2020, section 3.
    """
    if not 0 < tau < math.inf:
        raise ValueError(f"coupled_draw: tau must be positive and finite, got {tau!r:.200}")
    if logits.dim() < 2 or uniforms.shape != logits.shape:
        raise ValueError(
            "coupled_draw: logits and uniforms must have the same shape [..., rows, num_ops], got "
            f"{list(logits.shape)} and {list(uniforms.shape)}"
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p = logits.to(dtype).log_softmax(dim=-1)
    waits = -uniforms.to(dtype).log()
    keys = log_p - waits.log()
    best, picks = keys.detach().max(dim=-1, keepdim=True)
    if not bool(best.isfinite().all()):
        raise ValueError(
            "coupled_draw: every row must have a candidate, logits must be neither NaN nor +inf, "
            "and uniforms inside (0, 1)"
        )
    with torch.no_grad():
        # In the words above: -log v_k is exp(-best), and -log v_i what is left of -log u_i.
        left = (waits - log_p.exp() * (-best).exp()).clamp(min=0).scatter(-1, picks, 0.0)
    rebuilt = -torch.logaddexp(left.log() - log_p, -best)
    return CoupledDraw(
        picks.squeeze(-1),
        log_p.gather(-1, picks).squeeze(-1).sum(-1),
        (keys / tau).softmax(dim=-1),
        (rebuilt / tau).softmax(dim=-1),
    )


def surrogate_loss(
    draw: CoupledDraw,
    cost: Tensor,
    control: Tensor,
    *,
    scale: float = 1.0,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    r"""Return a loss whose gradient by the logits is the estimate (1).

    .. math:: \mathrm{sg}(L(z) - \eta c - b) \log p(z) + \eta c

    Args:
        draw: Choices z and relaxations.
        cost: L at the choices; no gradient is asked of it.
        control: The surrogate c at ``draw.combined``, with its graph.
        scale: The factor eta: 0 is the score function (REINFORCE), any value is unbiased.
        baseline: What is subtracted from the advantage, b; unbiased if independent of this draw.

    Shape:
        cost and control like ``draw.log_prob`` -> the same.

    Example:
        >>> from pyfast_nas import ops
        >>> logits = torch.zeros(1, 3, requires_grad=True)
        >>> draw = coupled_draw(logits, ops.philox_uniform(torch.tensor([0, 0]), 1, 3), tau=0.4)
        >>> price = torch.tensor([1.0, 2.0, 3.0])
        >>> loss = surrogate_loss(draw, price[draw.picks].sum(), (draw.combined * price).sum())
        >>> torch.autograd.grad(loss, logits)[0].shape
        torch.Size([1, 3])

    References:
        Vahdat et al., CVPR 2020, section 3.1.
    """
    advantage = (cost - scale * control - baseline).detach()
    return advantage * draw.log_prob + scale * control


def soften(logits: Tensor, epsilon: float) -> Tensor:
    r"""Return logits :math:`\log(p + \epsilon)`, under which every candidate keeps being drawn.

    Args:
        logits: Architecture parameters; ``-inf`` masks a candidate, which stays masked.
        epsilon: What each probability gains before they are normalised again.

    Shape:
        ``[rows, num_ops]`` -> the same.

    Example:
        >>> soften(torch.tensor([[9.0, 0.0, -torch.inf]]), 0.5).softmax(dim=-1)
        tensor([[0.7499, 0.2501, 0.0000]])
    """
    if not epsilon:
        return logits
    softened = (logits.softmax(dim=-1) + epsilon).log()
    return softened.masked_fill(logits.isneginf(), -math.inf)
