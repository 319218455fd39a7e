"""Where the time of a call goes: fused nodes, other operators by name, and what is left.

Operators are timed by torch's profiler, at the border between Python or autograd and the operator:
what an operator calls inside is its own. The call is also timed without the profiler.
"""

import dataclasses
import gc
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from pyfast_nas.bench.networks import NetworkCase
from pyfast_nas.bench.record import OURS, Row
from pyfast_nas.bench.settings import Settings
from pyfast_nas.bench.timing import copy_call, product_call, quantiles
from pyfast_nas.bench.work import Work, nodes_of

__all__ = ["CEILINGS", "NODES", "OUTSIDE", "REST", "WATCHED", "WHOLE", "Profile", "bench_profile",
           "kernels", "launches", "outermost", "profile", "started_by_host"]  # fmt: skip

# What the rows of a profile are about; those with "::" are operators of torch.
NODES = {
    "fused nodes, forward": ("pyfast_nas::fused_node", "pyfast_nas::fused_node_into"),
    "fused nodes, backward": (
        "pyfast_nas::fused_node_backward",
        "pyfast_nas::fused_node_backward_into",
    ),
}
REST = "other operators"
OUTSIDE = "outside of operators"
WATCHED = "all, watched"
WHOLE = "all, unwatched"
COPY = "ceiling: copy"
PRODUCT = "ceiling: matrix product"
CEILINGS = (COPY, PRODUCT)

NAMED = 6  # operators that get a row of their own


@dataclasses.dataclass(frozen=True)
class Profile:
    """Microseconds of every round.

    Attributes:
        operators: By name, the time of the watched call inside the operator.
        watched: Of the whole call while the profiler looks on.
        unwatched: Of the whole call without it.
        beside: Of what else took turns with them, by name.
    """

    operators: dict[str, list[float]]
    watched: list[float]
    unwatched: list[float]
    beside: dict[str, list[float]]


def profile(
    call: Callable[[], object],
    beside: Mapping[str, Callable[[], object]] | None = None,
    *,
    seconds: float = 1.0,
    rounds: int = 7,
    device: str = "cpu",
) -> Profile:
    """Time a call by its operators, as a whole, and other calls, in turn.

    Args:
        call: What is timed; it is warmed up here.
        beside: Calls that are timed in the same rounds, so that drift hits each of them alike.
        seconds: Time spent on the call, with the profiler and without.
        rounds: Rounds that are made even if they take longer, at least 2.
        device: Where the calls run. On a GPU an operator's time is that of its kernels.

    Example:
        >>> x = torch.ones(100, 100)
        >>> found = profile(lambda: x @ x + x, seconds=1e-3, rounds=2)
        >>> sorted(found.operators), len(found.watched) == len(found.unwatched) >= 2
        (['aten::add', 'aten::matmul'], True)
    """
    beside = beside or {}
    for other in (call, *beside.values()):
        _watched(other, device)  # what the profiler sets up once is warmed up as well
    counts: list[Counter[str]] = []
    watched: list[float] = []
    unwatched: list[float] = []
    others: dict[str, list[float]] = {name: [] for name in beside}
    gc.collect()
    gc.disable()
    try:
        while len(watched) < rounds or sum(watched) + sum(unwatched) < seconds * 1e6:
            unwatched.append(_timed(call, device))
            taken, count = _watched(call, device)
            watched.append(taken)
            counts.append(count)
            for name, other in beside.items():
                others[name].append(_timed(other, device))
            gc.collect()  # the profiler's events hold on to each other
    finally:
        gc.enable()
    operators: dict[str, list[float]] = defaultdict(list)
    for name in sorted(set().union(*counts)):
        operators[name] = [count[name] for count in counts]
    return Profile(dict(operators), watched, unwatched, others)


def _timed(call: Callable[[], object], device: str) -> float:
    _finish(device)
    start = time.perf_counter()
    call()
    _finish(device)
    return (time.perf_counter() - start) * 1e6


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _profiler(device: str) -> torch.profiler.profile:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes to stderr
    kinds = torch.profiler.ProfilerActivity
    on_gpu = torch.device(device).type == "cuda"
    return torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA] if on_gpu else [kinds.CPU])


def _watched(call: Callable[[], object], device: str) -> tuple[float, Counter[str]]:
    with _profiler(device) as profiler:
        taken = _timed(call, device)
    return taken, outermost(profiler.events(), torch.device(device).type == "cuda")


def launches(call: Callable[[], object], device: str) -> dict[str, int]:
    """Count the kernels that ``call`` runs on a GPU and what the host starts; nothing on the CPU.

    Example:
        >>> launches(lambda: None, "cpu")
        {}
    """
    if torch.device(device).type != "cuda":
        return {}
    call()
    with _profiler(device) as profiler:
        call()
        _finish(device)
    events = profiler.events()
    return {"launches": kernels(events), "host_launches": started_by_host(events)}


def started_by_host(events: Iterable[Any]) -> int:
    """Count what the host starts: kernels, copies, fills, and graphs of any number of them."""
    on_host = (e for e in events if e.device_type == torch.autograd.DeviceType.CPU)
    start = re.compile(r"cu(da)?(Launch|GraphLaunch|Memcpy|Memset)")
    return sum(start.match(event.name) is not None for event in on_host)


def kernels(events: Iterable[Any]) -> int:
    """Count the kernels among the events of torch's profiler: copies and fills are none."""
    on_gpu = (e for e in events if e.device_type == torch.autograd.DeviceType.CUDA)
    # Marks of ranges, as of an optimizer's step, are drawn on the GPU's timeline as well.
    no_kernel = re.compile(r"Mem(cpy|set)\b|(Optimizer|ProfilerStep)[.#]")
    return sum(no_kernel.match(event.name) is None for event in on_gpu)


def outermost(events: Iterable[Any], on_gpu: bool = False) -> Counter[str]:
    """Sum up microseconds by operator, of those that no other operator called.

    Args:
        events: Of torch's profiler. What is no operator, as a node of autograd, is looked through.
        on_gpu: Whether to take the time of the kernels that an operator started, all that it called
            included, in place of the time until it returned.
    """
    found: Counter[str] = Counter()
    for event in events:
        if not _is_operator(event) or event.device_type != torch.autograd.DeviceType.CPU:
            continue
        above = event.cpu_parent
        while above is not None and not _is_operator(above):
            above = above.cpu_parent
        if above is None:
            taken = event.device_time_total if on_gpu else event.time_range.elapsed_us()
            found[event.name] += taken
    return found


def _is_operator(event: Any) -> bool:
    return re.fullmatch(r"\w+::\w+", event.name) is not None


def bench_profile(case: NetworkCase, settings: Settings, say: Callable[[str], None]) -> list[Row]:
    """Check our provider of a supernet, then say where the time of forward and backward goes.

    Beside it a copy and a matrix product are timed, which say what this machine does at best.

    Args:
        case: The network at one size.
        settings: Device and patience.
        say: Takes a line about what is going on.

    Raises:
        WrongResultError: If it computes something else.
    """
    name = next(name for name in OURS if name in case.providers)
    device = settings.device
    workload = case.workload(name, device=device)
    say(f"profile, {case.name}: checking {name} against float64")
    case.check({name: workload}, device)
    say(f"profile, {case.name}: timing {name}")
    copy, moved = copy_call(device)
    product, flops = product_call(device)
    found = profile(
        workload.call("both"),
        {COPY: copy, PRODUCT: product},
        seconds=settings.seconds,
        rounds=settings.rounds,
        device=device,
    )
    work = dict(zip(NODES, nodes_of(workload.run), strict=True))
    work |= {COPY: Work(bytes=moved), PRODUCT: Work(flops=flops)}
    common = {"operator": "profile", "case": case.name, "shape": list(case.input_shapes[0])}
    common |= {"mode": "both", "dtype": "float32", "threads": torch.get_num_threads()}
    common |= {"images": case.batch}
    return _rows(_parts(found), work, common)


def _parts(found: Profile) -> dict[str, Sequence[float]]:
    """Times of every part that gets a row, by the name of the part."""
    rounds = range(len(found.watched))

    def total(names: Iterable[str]) -> list[float]:
        times = [found.operators[name] for name in names if name in found.operators]
        return [sum(of_one[at] for of_one in times) for at in rounds]

    nodes = {part: times for part, names in NODES.items() if any(times := total(names))}
    others = found.operators.keys() - set().union(*NODES.values())
    order = sorted(others, key=lambda name: (-quantiles(found.operators[name]).p50, name))
    inside = total(found.operators)
    return {
        **nodes,
        **{name: found.operators[name] for name in order[:NAMED]},
        REST: total(order[NAMED:]),
        OUTSIDE: [found.watched[at] - inside[at] for at in rounds],
        WATCHED: found.watched,
        WHOLE: found.unwatched,
        **found.beside,
    }


def _rows(
    parts: Mapping[str, Sequence[float]], work: Mapping[str, Work], common: dict[str, Any]
) -> list[Row]:
    """One row a part; of those that have work its speed beside that of the ceilings."""
    timings = {name: quantiles(times) for name, times in parts.items()}

    def speed(amount: int, name: str) -> float:
        return amount / timings[name].p50

    copy, product = speed(work[COPY].bytes, COPY), speed(work[PRODUCT].flops, PRODUCT)
    rows = []
    for name, timing in timings.items():
        more = {}
        if name in work:
            flops, moved = work[name].flops, work[name].bytes
            more = {"flops": flops, "depthwise_flops": work[name].depthwise}
            more |= {"product_share": round(speed(flops, name) / product, 3)}
            more |= {"bytes_moved": moved, "copy_share": round(speed(moved, name) / copy, 3)}
        rows.append(Row(**common, provider=name, timing=timing, **more))
    return rows
