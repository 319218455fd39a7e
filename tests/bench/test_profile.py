"""Where the time of a call goes: every microsecond in one part, parts named as they are."""

import json
import re
import time
from types import SimpleNamespace

import pytest
import torch

from pyfast_nas import _ext
from pyfast_nas.bench import profile as profiles
from pyfast_nas.bench import timing, workload
from pyfast_nas.bench.networks import DARTSCase
from pyfast_nas.bench.profile import NODES, OUTSIDE, REST, WATCHED, WHOLE, bench_profile, profile
from pyfast_nas.bench.summary import table
from pyfast_nas.bench.workload import WrongResultError
from pyfast_nas.cli.main import main


@pytest.fixture(autouse=True)
def low_ceilings(monkeypatch):
    """Copy and multiply what takes no time."""
    monkeypatch.setattr(profiles, "copy_call", lambda device: timing.copy_call(device, 1 << 12))
    monkeypatch.setattr(profiles, "product_call", lambda device: timing.product_call(device, 16))


def silent(line):
    """Say nothing."""


def test_operators_are_counted_where_they_are_called_from():
    x = torch.randn(64, 3, 8, 8, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)

    def call():
        time.sleep(0.01)
        y = torch.nn.functional.conv2d(x, weight)
        torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    found = profile(call, {"nap": lambda: time.sleep(0.002)}, seconds=1e-3, rounds=3)
    # Not the operators that a convolution calls inside; those of backward through autograd's nodes.
    assert set(found.operators) == {"aten::conv2d", "aten::convolution_backward", "aten::ones_like"}
    rounds = range(3)
    assert all(len(times) == 3 for times in (*found.operators.values(), found.unwatched))
    inside = [sum(times[at] for times in found.operators.values()) for at in rounds]
    assert all(0 < inside[at] <= found.watched[at] - 1e4 for at in rounds)
    assert len(found.beside["nap"]) == 3 and all(nap >= 2e3 for nap in found.beside["nap"])


def test_the_parts_of_a_supernet_make_up_the_whole(quick):
    rows = bench_profile(DARTSCase(batch=2, channels=2, cells=1), quick, silent)
    found = {row.provider: row for row in rows}
    assert len(found) == len(rows) and {REST, OUTSIDE, WATCHED, WHOLE} <= set(found)
    named = [name for name in found if "::" in name]
    assert len(named) == profiles.NAMED and not any("fused_node" in name for name in named)
    parts = [name for name in found if name in (*NODES, *named, REST, OUTSIDE)]
    # The median of two rounds is their mean, so the sum is that of the wholes.
    total = sum(found[name].timing.p50 for name in parts)
    assert total == pytest.approx(found[WATCHED].timing.p50, rel=1e-4)
    assert all(row.operator == "profile" and row.mode == "both" for row in rows)
    ceilings = [found[name] for name in profiles.CEILINGS]
    assert [(row.bytes_moved, row.flops) for row in ceilings] == [(2 << 12, 0), (0, 2 * 16**3)]
    assert [(row.copy_share, row.product_share) for row in ceilings] == [(1, 0), (0, 1)]
    if "compiled" in _ext.kernels_in_use().values():
        forward, backward = (found[name] for name in NODES)
        assert 3 * forward.flops == backward.flops > 0
        copy, _ = ceilings
        speeds = [row.bytes_moved / row.timing.p50 for row in (forward, copy)]
        assert forward.copy_share == pytest.approx(speeds[0] / speeds[1], abs=1e-3)


def test_without_kernels_plain_operators_are_told(quick):
    with _ext.use("reference"):
        rows = bench_profile(DARTSCase(batch=2, channels=2, cells=1), quick, silent)
    assert not {row.provider for row in rows} & set(NODES)
    assert not any("fused_node" in row.provider for row in rows)
    assert all(row.provider in profiles.CEILINGS or row.flops is None for row in rows)


def test_what_computes_something_else_is_not_profiled(quick, monkeypatch):
    monkeypatch.setattr(profiles, "profile", lambda *_, **__: pytest.fail("the clock was started"))
    monkeypatch.setattr("pyfast_nas.bench.workload.relative_error", lambda got, want: 0.5)
    with pytest.raises(WrongResultError, match="must compute the outcome"):
        bench_profile(DARTSCase(batch=2, channels=2, cells=1), quick, silent)


def record(provider, milliseconds, **more):
    common = {"operator": "profile", "case": "net", "mode": "both", "bytes_moved": 0}
    return common | {"provider": provider, "timing": {"p50": 1e3 * milliseconds}} | more


def test_the_table_says_what_bounds():
    nodes = {"flops": 2_000_000_000, "depthwise_flops": 500_000_000, "bytes_moved": 100_000_000}
    forward, backward = NODES
    rows = [
        record(profiles.PRODUCT, 10, flops=10**10, depthwise_flops=0, product_share=1.0,
               copy_share=0.0),
        record(profiles.COPY, 5, flops=0, depthwise_flops=0, product_share=0.0,
               bytes_moved=50_000_000, copy_share=1.0),
        record(OUTSIDE, 5),
        record(WHOLE, 95),
        record("aten::add", 10),
        record("aten::cat", 15),
        record(REST, 1),
        record(WATCHED, 100),
        record(backward, 50, **nodes, product_share=0.04, copy_share=0.2),
        record(forward, 20, **nodes, product_share=0.6, copy_share=0.5),
    ]  # fmt: skip
    head, lines = table(rows)
    assert [line[0] for line in lines] == [
        *(forward, backward, "aten::cat", "aten::add", REST, OUTSIDE, WATCHED, WHOLE),
        *profiles.CEILINGS,
    ]
    found = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert list(found[forward].values())[1:] == [
        *("20.0 ms", "20.0 %", "2.00", "25.0 %", "100.0", "60.0 %", "100.0", "5.00", "50.0 %"),
        "arithmetic",
    ]
    assert found[backward]["bound by"] == "memory"
    assert found["aten::cat"]["share"] == "15.0 %" and found[WATCHED]["share"] == "100.0 %"
    assert not any(found["aten::cat"][title] for title in head[3:])
    assert not found[WHOLE]["share"] and not found[profiles.COPY]["share"]
    product = found[profiles.PRODUCT]
    assert product["GFLOP/s"] == "1000.0" and not product["depthwise"] and not product["MB"]
    assert found[profiles.COPY]["GB/s"] == "10.00" and not found[profiles.COPY]["bound by"]


TINY = ["bench", "--what", "profile", "--batch-size", "2", "--seconds", "0.001", "--rounds", "2",
        "--channels", "2", "--cells", "1", "--blocks", "1"]  # fmt: skip


def test_the_command_prints_both_networks_and_writes_their_rows(tmp_path, capsys):
    assert main([*TINY, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        r"profile: DARTS, C = 2, 1 cells, batch 2",
        r"profile: NAS-Bench-201, C = 2, N = 1, batch 2",
        r"time +share +GFLOP +depthwise +GFLOP/s +of product +MB +GB/s +of copy +bound by",
        r"all, watched +[\d.]+ ms +100\.0 %",
        r"bound by: the ceiling that is closer",
    ):
        assert re.search(words, printed), words
    assert "saved:" not in printed
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert {row["operator"] for row in rows} == {"profile"} and len({r["case"] for r in rows}) == 2


def test_kernels_are_counted_without_copies_and_marks():
    def event(name, kind="CUDA"):
        return SimpleNamespace(name=name, device_type=getattr(torch.autograd.DeviceType, kind))

    ours = "void pfn::cuda::run_kernel<pfn::cuda::Sum<float> >(pfn::cuda::Sum<float>)"
    names = [ours, "void at::native::vectorized_elementwise_kernel<4>", "ampere_sgemm_32x128_nn"]
    marks = ["Memcpy HtoD (Pageable -> Device)", "Memset (Device)", "Optimizer.step#Adam.step"]
    events = [event(name) for name in names + marks]
    starts = ["cudaLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch", "cudaMemcpyAsync"]
    others = ["aten::add", "cudaStreamSynchronize", "cudaStreamIsCapturing"]
    events += [event(name, "CPU") for name in starts + others]
    assert profiles.kernels(events) == 3
    assert profiles.started_by_host(events) == 4
    assert profiles.launches(lambda: None, "cpu") == {}


def test_operands_of_a_rotation_take_turns():
    calls = []
    works = [
        workload.Workload(forward=lambda n=n: calls.append(n), run=lambda: None, leaves=[])
        for n in range(3)
    ]
    call = workload.Rotation(works).call("forward")
    for _ in range(5):
        call()
    assert calls == [0, 1, 2, 0, 1]
