"""Whole sessions on tiny cases: rows, checks before the clock, who cannot run and why."""

import dataclasses

import pytest
import torch

from pyfast_nas import _ext, bench
from pyfast_nas.bench import child, operators, sampling, session, tensor_lists
from pyfast_nas.bench.networks import DARTSCase
from pyfast_nas.bench.parts import CellCase, EdgeCase, NodeCase
from pyfast_nas.bench.products import ProductCase
from pyfast_nas.bench.settings import Settings, network_cases
from pyfast_nas.bench.steps import SEARCHES, StepCase
from pyfast_nas.bench.workload import WrongResultError
from pyfast_nas.hypergradients import HessianProducts
from pyfast_nas.nn.acceleration_report import AccelerateReport

EDGE = EdgeCase(batch=2, channels=4, size=8)


def silent(line):
    """Say nothing."""


@pytest.mark.parametrize(
    "case",
    [
        EDGE,
        EdgeCase(batch=2, channels=6, size=8, stride=2),
        NodeCase(batch=2, channels=4, size=8),
        NodeCase(batch=2, channels=4, size=8, stride=2),
        CellCase(batch=2, channels=4, size=8, reduction=True),
    ],
    ids=lambda case: f"{case.operator} {case.name}",
)
def test_parts(case, quick):
    rivals = {"eager"} if case.operator == "cell" else {"eager", "channels-last", "reference"}
    settings = dataclasses.replace(quick, rivals=tuple(rivals))
    rows = session.bench_network(case, settings, silent)
    providers = {*rivals, "fused", "fused-nchw"}
    assert {(row.mode, row.provider) for row in rows} == {
        (mode, name) for mode in ("forward", "both") for name in providers
    }
    assert all(row.error < 1e-3 and row.timing.p50 > 0 and row.images == 2 for row in rows)
    kept = {row.provider: row.kept_bytes for row in rows if row.mode == "both"}
    assert len({kept[name] for name in rivals - {"reference"}}) == 1 and kept["eager"] > 0
    if "compiled" in _ext.kernels_in_use().values():
        assert kept["fused"] < kept["eager"] / 2


def test_a_model_of_others(quick):
    settings = dataclasses.replace(quick, rivals=("eager", "checkpoint"))
    _, foreign = network_cases("supernet", settings)
    rows = session.bench_network(foreign, settings, silent)
    if "compiled" in _ext.kernels_in_use().values():
        kept = {row.provider: row.kept_bytes for row in rows if row.mode == "both"}
        assert 0 < kept["accelerate"] < kept["eager"]
    (again,) = [row for row in rows if row.provider == "checkpoint" and row.mode == "both"]
    assert again.kept_bytes is None and again.held_bytes > 0


def test_a_model_that_is_left_as_it_was_is_not_timed_as_ours(quick, monkeypatch):
    nothing = AccelerateReport({}, {}, {}, ())
    monkeypatch.setattr("pyfast_nas.accelerate", lambda model: nothing)
    _, foreign = network_cases("supernet", quick)
    rows = session.bench_network(foreign, quick, silent)
    (skipped,) = [row for row in rows if row.timing is None]
    assert skipped.provider == "accelerate" and "replaced nothing" in skipped.note
    assert {row.provider for row in rows if row.timing} == {"eager", "fused"}


def test_a_step_of_second_order_is_weighed_at_a_larger_batch(quick, monkeypatch):
    case = StepCase(net=DARTSCase(batch=2, channels=2, cells=1))
    weighed = dataclasses.replace(quick, resident=True)
    asked = []
    monkeypatch.setattr(session, "resident_step_bytes", lambda *what: asked.append(what) or 7 << 20)
    *_, row = session.bench_steps(case, weighed, silent, searches=("first-order DARTS",))
    ((net, provider, search),) = asked
    assert (net.batch, provider, search) == (32, "fused", "second-order DARTS")
    assert row.timing is None and row.resident_bytes == 7 << 20
    assert row.case == f"second-order DARTS: {net.name}"


def test_a_wrong_provider_stops_the_bench(quick, monkeypatch):
    monkeypatch.setattr(session, "measure", lambda *_, **__: pytest.fail("the clock was started"))
    ours = EdgeCase.ours

    def wrong(case):
        module = ours(case)
        first = next(p for p in module.parameters())
        first.register_hook(lambda gradient: 1.5 * gradient)
        return module

    monkeypatch.setattr(EdgeCase, "ours", wrong)
    with pytest.raises(WrongResultError, match="fused must compute"):
        session.bench_network(EDGE, quick, silent)


def test_search_steps(quick):
    case = StepCase(net=DARTSCase(batch=2, channels=2, cells=1))
    first, second = "first-order DARTS", "MSG-DAS, K = 2"
    rows = session.bench_steps(case, quick, silent, searches=(first, second))
    found = {(row.case.partition(":")[0], row.provider): row for row in rows}
    assert set(found) == {(s, p) for s in (first, second) for p in ("eager", "fused")}
    # The plain DARTS step is what every search is held against.
    assert found[first, "eager"].timing == found[second, "eager"].timing
    assert all(row.peak_bytes > 0 and row.mode == "step" for row in rows)


def test_steps_of_second_order_stand_beside_their_own_plain_step(quick):
    case = StepCase(net=DARTSCase(batch=2, channels=2, cells=1))
    first, second = "first-order DARTS", "second-order DARTS"
    rows = session.bench_steps(case, quick, silent, searches=(second,))
    assert {(row.case.partition(":")[0], row.provider) for row in rows} == {
        (second, "eager"),
        (second, "fused"),
    }
    # The second step has momentum, and weights that the logits of the first step have moved.
    plain = {name: case.stepper("eager", name, torch.float64) for name in (first, second)}
    ours = case.stepper("fused", second, torch.float64)
    for _ in range(2):
        by_first, by_second, by_ours = (
            stepper.results() for stepper in (plain[first], plain[second], ours)
        )
        torch.testing.assert_close(by_ours, by_second, rtol=1e-7, atol=1e-12)
    assert not torch.allclose(by_first[0], by_second[0], rtol=1e-7), "nothing of second order"


def test_exact_products(quick, monkeypatch):
    case = ProductCase(net=DARTSCase(batch=2, channels=2, cells=1))
    rows = session.bench_products(case, quick, silent)
    assert [row.provider for row in rows] == ["eager", "fused"]
    assert all(row.timing.p50 > 0 and row.mode == "step" for row in rows)
    right = HessianProducts.both
    monkeypatch.setattr(
        HessianProducts, "both", lambda self, u: right(self, [2 * entry for entry in u])
    )
    with pytest.raises(WrongResultError, match="fused must compute"):
        session.bench_products(case, quick, silent)


def test_recorded_steps_are_ours_and_say_why_they_are_not():
    case = StepCase(net=DARTSCase(batch=2, channels=2, cells=1))
    steppers = [case.stepper(name, "MSG-DAS, K = 2") for name in ("fused", "recorded")]
    want, got = (stepper.results() for stepper in steppers)
    assert all(map(torch.equal, want, got))
    reasons = [stepper.why_not_recorded for stepper in steppers]
    assert reasons == ["", "the search runs on cpu"]


def test_a_step_that_moves_the_weights_elsewhere_is_refused(quick, monkeypatch):
    from pyfast_nas import algorithms

    case = StepCase(net=DARTSCase(batch=2, channels=2, cells=1))
    monkeypatch.setitem(
        SEARCHES, "first-order DARTS", lambda: algorithms.DARTS(weight_momentum=0.9, weight_lr=0.02)
    )
    with pytest.raises(WrongResultError, match="a step of first-order DARTS"):
        session.bench_steps(case, quick, silent, searches=("first-order DARTS",))


@pytest.mark.parametrize(
    "case",
    [
        operators.MixedSumCase((2, 4, 8, 8)),
        operators.NormMixedSumCase((2, 4, 8, 8), channels_last=True),
        sampling.GumbelTopKCase(14, 8, 2),
        tensor_lists.NeumannCase(storage="flat", cells=1),
    ],
    ids=lambda case: case.operator,
)
def test_operators(case, monkeypatch):
    # Compiling takes seconds and is no code of ours.
    for module in (operators, sampling, tensor_lists):
        monkeypatch.setattr(module, "compiled", lambda function: function)
    for mode in case.modes:
        rows = session.bench_operator(case, mode, seconds=1e-3, bandwidth=1e10)
        assert "fused" in {row.provider for row in rows}
        assert any(row.provider.startswith("compiled") for row in rows)
        assert all(row.bytes_moved == case.bytes_moved(mode) > 0 for row in rows)


@pytest.mark.parametrize("storage", ["apart", "mixed", "flat"])
def test_central_differences(storage):
    case = tensor_lists.CentralDifferenceCase(storage=storage, cells=1)
    rows = session.bench_operator(case, "step", seconds=1e-3, bandwidth=1e10)
    found = {row.provider for row in rows}
    assert {"loop", "foreach", "fused"} <= found and ("buffers" in found) == (storage == "flat")
    assert rows[0].case.startswith("central difference, ")


def test_a_step_on_lists_that_goes_wrong_is_refused(monkeypatch):
    monkeypatch.setattr(tensor_lists.tensor_list, "neumann_step_", lambda ps, us, hs, gamma: None)
    with pytest.raises(WrongResultError, match="fused must compute the outcome of tensor_list"):
        tensor_lists.NeumannCase(storage="apart", cells=1).workloads("cpu")


def test_every_operator_case_is_run(monkeypatch):
    seen = []
    monkeypatch.setattr(session, "copy_bandwidth", lambda device: 1.0)
    monkeypatch.setattr(
        session, "bench_operator", lambda case, mode, **_: seen.append((case.operator, mode)) or []
    )
    list(bench.bench("operators", Settings()))
    assert set(seen) == {
        *(("mixed_sum", mode) for mode in ("forward", "backward", "both")),
        *(("norm_mixed_sum", mode) for mode in ("forward", "both")),
        *(("gumbel_topk", mode) for mode in ("forward", "both")),
    }
    seen.clear()
    list(bench.bench("tensor-list", Settings()))
    assert seen == [("tensor_list", "step")] * 6


def test_compiling_is_given_up_and_said(quick):
    settings = dataclasses.replace(quick, rivals=("eager", "compile"), compile_seconds=0.2)
    rows = session.bench_network(EDGE, settings, silent)
    (given_up,) = [row for row in rows if row.provider == "compile"]
    assert given_up.timing is None and given_up.note == "not done after 0 s"


@pytest.mark.slow  # a process that imports torch
def test_resident_memory_is_measured_in_a_process_of_its_own():
    assert child.resident_bytes(EdgeCase(batch=64, channels=16), "eager") > 64 << 20


def test_a_child_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(child.sys, "executable", "/bin/false")
    with pytest.raises(child.ChildError, match="exit code 1"):
        child.resident_bytes(EDGE, "eager")


def test_threads_are_written_down(quick):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = session.bench_network(EDGE, quick, silent)
    finally:
        torch.set_num_threads(before)
    assert {row.threads for row in rows} == {1}
