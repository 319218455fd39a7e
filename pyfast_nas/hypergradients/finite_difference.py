"""Second-order DARTS as published: a virtual step, and a central difference for its derivative."""

from typing import Any

from pyfast_nas.hypergradients.base import Gradients, estimator
from pyfast_nas.hypergradients.problem import BilevelProblem
from pyfast_nas.hypergradients.unrolled import MixedAt, one_step

__all__ = ["finite_difference"]


@estimator
def finite_difference(
    problem: BilevelProblem,
    train: Any,
    valid: Any,
    *,
    radius: float = 1e-2,
    clip: float | None = None,
    mixed_at: MixedAt = "start",
) -> Gradients:
    r"""Return the gradient through one step of the weights' optimizer, by plain passes alone.

    With :math:`w' = w - \xi(\mu b + \nabla_w L_{train} + \lambda w)` and
    :math:`v = \nabla_{w'} L_{valid}(w', \alpha)`

    .. math:: \nabla_\alpha L_{valid}(w', \alpha) - \xi\,
        \frac{\nabla_\alpha L_{train}(w + \epsilon v) - \nabla_\alpha L_{train}(w - \epsilon v)}
        {2\epsilon}, \qquad \epsilon = r / \lVert v \rVert .

    Learning rate :math:`\xi`, momentum :math:`\mu b` and decay :math:`\lambda` are those of the
    problem's optimizer at this moment; Adam and the other forms of SGD have their own step and
    derivative in the same places. Four plain passes, no graph of a gradient; nothing is read on
    the host.

    Args:
        problem: With a weight optimizer.
        train: The batch that the next weight step takes.
        valid: Validation batch.
        radius: :math:`r`. In float32 differences are best between 1e-3 and 1e-2.
        clip: Largest norm of the gradient in the virtual step; ``None`` as in the DARTS code.
        mixed_at: ``"start"`` takes the difference at the weights before the step, as published;
            ``"unrolled"`` after it.

    Raises:
        ConfigError: If an option is out of range.

    Example:
        >>> import torch
        >>> w, a = (torch.tensor([float(n)], requires_grad=True) for n in (-2, 2))
        >>> problem = BilevelProblem(
        ...     weights=[w],
        ...     alphas=[a],
        ...     train_loss=lambda batch: (w - a).square().sum(),
        ...     valid_loss=lambda batch: (a * w - 2 * a + 1).sum(),
        ...     weight_optimizer=torch.optim.SGD([w], lr=0.5),
        ... )
        >>> round(finite_difference(problem, None, None)[0].item(), 3)
        2.0

    References:
        Liu, Simonyan & Yang, "DARTS", ICLR 2019, eqs. 7-8.
    """
    return one_step(
        problem,
        train,
        valid,
        hvp="finite_difference",
        radius=radius,
        clip=clip,
        mixed_at=mixed_at,
    )
