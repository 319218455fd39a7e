"""Penalties: known answers, derivatives, refused units."""

import math

import pytest
import torch

from pyfast_nas.costs import add_linear, hinge, mul_log
from pyfast_nas.errors import ConfigError


def values(*numbers: float) -> list[torch.Tensor]:
    return [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]


def test_mul_log_has_the_known_value() -> None:
    loss, cost = values(2.0, 80.0**2)
    assert mul_log(loss, cost, 80.0).item() == pytest.approx(0.2 * 2 * 2**0.3, rel=1e-14)


def test_mul_log_at_the_reference_is_the_scaled_loss() -> None:
    loss, cost = values(2.0, 80.0)
    assert mul_log(loss, cost, 80.0, scale=0.5).item() == pytest.approx(1.0, rel=1e-14)


def test_add_linear_has_the_known_value() -> None:
    loss, cost = values(2.0, 120.0)
    assert add_linear(loss, cost, 80.0).item() == pytest.approx(2.05, rel=1e-14)


def test_hinge_has_the_known_values() -> None:
    costs = torch.tensor([9.0, 10.0, 14.0])
    assert hinge(costs, 10.0, 0.5).tolist() == [0.0, 0.0, 2.0]


def test_derivatives_are_the_known_ones() -> None:
    loss, cost = values(2.0, 120.0)
    found = torch.autograd.grad(mul_log(loss, cost, 80.0), (loss, cost))
    ratio = math.log(120) / math.log(80)
    expected = 0.2 * ratio**0.3, 0.2 * 2 * 0.3 * ratio**-0.7 / (120 * math.log(80))
    assert [float(g) for g in found] == pytest.approx(expected, rel=1e-13)
    found = torch.autograd.grad(add_linear(loss, cost, 80.0), (loss, cost))
    assert [float(g) for g in found] == pytest.approx((1.0, 0.1 / 80), rel=1e-14)
    assert float(torch.autograd.grad(hinge(cost, 100.0, 0.5), cost)[0]) == 0.5
    assert float(torch.autograd.grad(hinge(cost, 130.0, 0.5), cost)[0]) == 0.0


@pytest.mark.parametrize(
    ("cost", "reference", "words"),
    [(0.5, 80.0, "cost must be greater than 1"), (80.0, 1.0, "reference must be greater than 1")],
)
def test_units_without_a_positive_logarithm_are_refused(cost, reference, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        mul_log(*values(1.0, cost), reference)


def test_a_reference_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="greater than 0, got 0"):
        add_linear(*values(1.0, 2.0), 0.0)
