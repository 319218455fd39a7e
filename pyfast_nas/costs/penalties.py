"""How a cost enters a loss: as a factor, as a share of a reference, as an excess over a target.

Every form is differentiable in the loss and in the cost. None of them knows units: cost, reference
and target must have the same one.
"""

import math

import torch
from torch import Tensor

from pyfast_nas.errors import ConfigError

__all__ = ["add_linear", "hinge", "mul_log"]


def mul_log(
    loss: Tensor, cost: Tensor, reference: float, scale: float = 0.2, exponent: float = 0.3
) -> Tensor:
    r"""Return the loss times a power of the cost's logarithm.

    .. math:: a\, L \left(\frac{\ln c}{\ln r}\right)^b

    Args:
        loss: The loss L.
        cost: The cost c, in a unit in which it is greater than 1; while a CUDA graph is recorded
            nobody looks, and a cost of at most 1 gives infinity or NaN.
        reference: The cost r of equal footing, in the same unit, greater than 1.
        scale: The factor a.
        exponent: The power b.

    Shape:
        loss ``[]``, cost ``[]`` -> ``[]``.

    Raises:
        ConfigError: If a logarithm would not be positive.

    Example:
        >>> mul_log(torch.tensor(2.0), torch.tensor(80.0), reference=80.0)
        tensor(0.4000)

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, the authors' code ("mul#log").
    """
    _require_positive_logarithm("reference", reference)
    if not (cost.is_cuda and torch.cuda.is_current_stream_capturing()):
        _require_positive_logarithm("cost", float(cost.detach()))
    return scale * loss * (cost.log() / math.log(reference)) ** exponent


def add_linear(loss: Tensor, cost: Tensor, reference: float, weight: float = 0.1) -> Tensor:
    r"""Return the loss plus the share by which the cost is above the reference.

    .. math:: L + \lambda\, \frac{c - r}{r}

    Args:
        loss: The loss L.
        cost: The cost c.
        reference: The cost r that adds nothing, in the same unit, greater than 0.
        weight: The factor lambda.

    Shape:
        loss ``[]``, cost ``[]`` -> ``[]``.

    Raises:
        ConfigError: If the reference is not positive.

    Example:
        >>> add_linear(torch.tensor(2.0), torch.tensor(120.0), reference=80.0)
        tensor(2.0500)

    References:
        Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, the authors' code ("add#linear").
    """
    if not reference > 0:
        raise ConfigError(f"add_linear: reference must be greater than 0, got {reference:g}")
    return loss + weight * (cost - reference) / reference


def hinge(cost: Tensor, target: float, weight: float) -> Tensor:
    r"""Return what the cost is above its target, weighted; below the target nothing pulls.

    .. math:: \beta \max(0, c - t)

    Args:
        cost: The cost c.
        target: The target t, in the same unit.
        weight: The factor beta, in units of the loss per unit of the cost.

    Shape:
        cost any shape -> the same.

    Example:
        >>> hinge(torch.tensor([9.0, 14.0]), target=10.0, weight=0.5)
        tensor([0., 2.])

    References:
        Vahdat et al., "UNAS", CVPR 2020, section 3.2.
    """
    return weight * (cost - target).clamp(min=0)


def _require_positive_logarithm(name: str, value: float) -> None:
    if not value > 1:
        raise ConfigError(
            f"mul_log: {name} must be greater than 1, so that its logarithm is positive: take a "
            f"smaller unit, got {value:g}"
        )
