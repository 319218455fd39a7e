"""Supernet guidance: the whole supernet, run without a trace, teaches its sub-graphs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pyfast_nas.nn import Supernet, frozen_statistics

__all__ = ["distillation_loss", "teacher_outputs"]


def teacher_outputs(supernet: Supernet, inputs: Tensor) -> Tensor:
    """Return the outputs of the supernet with every candidate weighted by its probability.

    No noise, no gradient, nothing saved; running statistics stay as they are. Without a gradient
    a cell sums its candidates one after another, so memory does not grow with their number.
    """
    with torch.no_grad(), frozen_statistics(supernet):
        return supernet(inputs)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return the divergence of softened predictions, scaled so that its gradient keeps its size.

    .. math:: T^2 \frac1B \sum_n
              \mathrm{KL}\big(\mathrm{softmax}(z^T_n/T) \,\|\, \mathrm{softmax}(z_n/T)\big)

    Args:
        student: Logits that are taught.
        teacher: Logits that teach; no gradient flows to them.
        temperature: Softening T, greater than zero.

    Shape:
        ``[batch, classes]`` both -> scalar.

    Example:
        >>> loss = distillation_loss(torch.tensor([[1, 1, -0.5]]), torch.tensor([[2, 0.5, -1]]))
        >>> round(loss.item(), 6)
        0.236

    References:
        Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher.detach() / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
