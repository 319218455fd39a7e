"""Metrics cross to the host together, and what is not finite is named."""

import pytest
import torch

from pyfast_nas.engine.metrics import Means, MetricBuffer
from pyfast_nas.errors import DivergenceError


def test_tensors_and_numbers_come_back_in_their_rows():
    buffer = MetricBuffer("search")
    buffer.add(4, {"a": torch.tensor(1.5), "tau": 10.0})
    buffer.add(5, {"a": torch.tensor(2.5, dtype=torch.float64), "b": torch.tensor([3])})
    assert len(buffer) == 2
    assert buffer.fetch() == [(4, {"a": 1.5, "tau": 10.0}), (5, {"a": 2.5, "b": 3.0})]
    assert len(buffer) == 0 and buffer.fetch() == []


def test_one_transfer_whatever_the_number_of_steps(monkeypatch):
    buffer = MetricBuffer("search")
    for step in range(50):
        buffer.add(step, {"a": torch.tensor(float(step)), "b": torch.tensor(0.0)})
    calls = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: calls.append(1) or original(self))
    for name in ("item", "__float__", "tolist"):
        before = getattr(torch.Tensor, name)

        def counted(self, *arguments, before=before):
            assert self.numel() == 100, "no number is fetched alone"
            return before(self, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    assert len(buffer.fetch()) == 50
    assert len(calls) == 1


@pytest.mark.promise("P4")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_divergence_names_the_first_step_and_quantity(bad):
    buffer = MetricBuffer("search")
    for step in range(10, 20):
        value = torch.tensor(bad if step >= 13 else 1.0)
        buffer.add(step, {"train/loss": torch.tensor(1.0), "valid/loss": value})
    with pytest.raises(DivergenceError, match=r"valid/loss must stay finite, got .* at step 13$"):
        buffer.fetch()


def test_plain_numbers_are_looked_at_too():
    buffer = MetricBuffer("train")
    buffer.add(1, {"tau": float("nan")})
    with pytest.raises(DivergenceError, match="train: tau must stay finite, got nan at step 1"):
        buffer.fetch()


def test_means_are_over_the_rows_that_have_the_key():
    means = Means()
    for row in ({"a": 1.0}, {"a": 3.0, "b": 7.0}):
        means.add(row)
    assert means.values() == {"a": 2.0, "b": 7.0}
    assert Means().values() == {}
