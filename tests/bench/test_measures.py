"""Clock, scales and judge: what they count, and what they refuse."""

import math

import pytest
import torch

from pyfast_nas.bench.memory import held_bytes, kept_bytes, peak_bytes, resident_peak
from pyfast_nas.bench.timing import measure
from pyfast_nas.bench.workload import DEEP, HOPELESS, KINKS, WrongResultError, check


def test_providers_take_turns():
    order = []
    timings = measure(
        {name: lambda name=name: order.append(name) or sum(range(20_000)) for name in "ab"},
        seconds=1e-4,
        rounds=9,
    )
    assert order[-18:] == list("ab") * 9
    assert all(0 < t.p20 <= t.p50 <= t.p80 for t in timings.values())


def test_a_slower_call_has_the_larger_median():
    timings = measure(
        {"short": lambda: sum(range(100)), "long": lambda: sum(range(100_000))}, seconds=0.01
    )
    assert timings["long"].p50 > 20 * timings["short"].p50


def test_kept_bytes_count_a_storage_once_and_no_parameter():
    x = torch.ones(1000, requires_grad=True)
    weight = torch.ones(1000, requires_grad=True)
    # The product keeps x and the weight, each sine a view of the product.
    call = lambda: (y := x * weight)[:500].sin().sum() + y[500:].sin().sum()  # noqa: E731
    assert kept_bytes(call, [weight]) == 4000 + 4000
    assert kept_bytes(call) == 4000 + 4000 + 4000
    with torch.no_grad():
        assert kept_bytes(call) == 0


def test_held_and_peak_bytes():
    x = torch.ones(1000)
    assert held_bytes(lambda: x.exp().sin()) == 4000  # without a graph the first is gone
    assert peak_bytes(lambda: x.exp().sin().sum()) >= 8000


def test_resident_peak_sees_memory_that_is_freed_again():
    size = 64 << 20
    assert 0.9 * size < resident_peak(lambda: torch.ones(size // 4).sum()) < 1.5 * size


def results(*values):
    return [torch.tensor(value) for value in values]


def test_one_wrong_gradient_of_a_thousand_stops_the_bench():
    truth = [t.double() for t in results([1.0, 2.0], *([[1.0, -1.0]] * 1000))]
    right = [t.float() for t in truth]
    wrong = [*right[:-1], 1.1 * right[-1]]
    found = check({"plain": right, "ours": right}, truth, "plain", "c")
    assert found["ours"] == (0.0, 0.0)
    # Also where whole networks are excused their kinks.
    for kinks in (None, KINKS):
        with pytest.raises(WrongResultError, match="ours must compute the gradients of c"):
            check({"plain": right, "ours": wrong}, truth, "plain", "c", kinks=kinks)


def test_a_gradient_that_vanishes_is_held_to_the_size_of_the_largest():
    truth = [t.double() for t in results([1.0], [1.0, -2.0])]
    truth.append(torch.tensor([1e-16, -1e-16], dtype=torch.float64))
    right = [*(t.float() for t in truth[:2]), torch.tensor([3e-8, 1e-8])]
    assert 0 < check({"ours": right}, truth, "ours", "c")["ours"].gradients < 1e-6
    wrong = [*right[:2], torch.tensor([1e-3, 0.0])]
    with pytest.raises(WrongResultError, match="ours must compute the gradients of c"):
        check({"plain": right, "ours": wrong}, truth, "plain", "c")


def test_an_outcome_is_excused_no_kinks():
    truth = [t.double() for t in results([1.0], [1.0])]
    right = [t.float() for t in truth]
    off = [1.001 * right[0], right[1]]
    with pytest.raises(WrongResultError, match="ours must compute the outcome of c"):
        check({"plain": right, "ours": off}, truth, "plain", "c", tolerance=DEEP, kinks=KINKS)
    kinked = [right[0], 1.01 * right[1]]
    everyone = {"plain": right, "ours": kinked}
    assert check(everyone, truth, "plain", "c", tolerance=DEEP, kinks=KINKS)["ours"].gradients > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_wrong(bad):
    truth = [t.double() for t in results([1.0], [1.0], [2.0])]
    right = [t.float() for t in truth]
    for broken in ([bad], [1.0], [2.0]), ([1.0], [bad], [2.0]), ([1.0], [1.0], [bad]):
        with pytest.raises(WrongResultError, match="ours"):
            check({"plain": right, "ours": results(*broken)}, truth, "plain", "c")


def test_a_plain_result_that_is_far_off_is_no_excuse():
    truth = [t.double() for t in results([1.0], [1.0])]
    plain = [(1 + 2 * HOPELESS) * t.float() for t in truth]
    with pytest.raises(WrongResultError, match="plain"):
        check({"plain": plain}, truth, "plain", "c", kinks=KINKS)
