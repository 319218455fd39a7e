"""What is run when: cases chosen, results checked, providers timed in turn, rows made."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch

from pyfast_nas.algorithms import StepGraph
from pyfast_nas.bench.child import (
    ChildError,
    allow_recompilation,
    compile_cache,
    compile_seconds,
    resident_bytes,
    resident_step_bytes,
)
from pyfast_nas.bench.memory import held_bytes, kept_bytes, peak_bytes
from pyfast_nas.bench.networks import DARTSCase, NetworkCase
from pyfast_nas.bench.operators import MIXED_SUM_CASES, NORM_MIXED_SUM_CASES, OperatorCase
from pyfast_nas.bench.paths import bench_paths
from pyfast_nas.bench.products import ProductCase
from pyfast_nas.bench.profile import bench_profile, launches
from pyfast_nas.bench.record import Row
from pyfast_nas.bench.rivals import PROVIDERS
from pyfast_nas.bench.sampling import GUMBEL_TOPK_CASES
from pyfast_nas.bench.settings import Say, Settings, network_cases
from pyfast_nas.bench.steps import LARGE, PLAIN, SEARCHES, SECOND_ORDER, StepCase
from pyfast_nas.bench.tensor_lists import TENSOR_LIST_CASES
from pyfast_nas.bench.timing import Timing, copy_bandwidth, measure
from pyfast_nas.bench.workload import DEEP, FLOAT64, KINKS, Errors, Workload, check
from pyfast_nas.testing import full_float32

__all__ = ["bench", "bench_network", "bench_operator", "bench_products", "bench_steps"]

_OPERATOR_CASES = {
    "operators": (*MIXED_SUM_CASES, *NORM_MIXED_SUM_CASES, *GUMBEL_TOPK_CASES),
    "tensor-list": TENSOR_LIST_CASES,
}


def bench(what: str, settings: Settings, say: Say = lambda line: None) -> Iterator[list[Row]]:
    """Run everything that ``what`` names; yield the rows of each case as they come.

    Args:
        what: One of ``settings.WHAT``.
        settings: Sizes, rivals and patience.
        say: Takes a line about what is going on.

    Raises:
        WrongResultError: If a provider computes something else.
    """
    with full_float32():
        yield from _bench(what, settings, say)


def _bench(what: str, settings: Settings, say: Say) -> Iterator[list[Row]]:
    device = settings.device
    if what in _OPERATOR_CASES:
        bandwidth = copy_bandwidth(device)
        for case in _OPERATOR_CASES[what]:
            for mode in case.modes:
                say(f"{case.operator}, {case.name}, {mode}")
                yield bench_operator(
                    case, mode, seconds=settings.seconds, bandwidth=bandwidth, device=device
                )
        return
    if what == "product":
        # Half the batch: the graph of a gradient takes several times the memory of a pass.
        half = max(settings.batch_size // 2, 1)
        net = DARTSCase(batch=half, channels=settings.channels, cells=settings.cells)
        yield bench_products(ProductCase(net=net), settings, say)
        return
    if what in ("step", "paths"):
        net = DARTSCase(batch=settings.batch_size, channels=settings.channels, cells=settings.cells)
        yield (bench_steps if what == "step" else bench_paths)(StepCase(net=net), settings, say)
        return
    if what == "profile":
        for case in network_cases("supernet", settings):
            yield bench_profile(case, settings, say)
        return
    for case in network_cases(what, settings):
        yield bench_network(case, settings, say)


def bench_operator(
    case: OperatorCase,
    mode: str,
    *,
    seconds: float,
    bandwidth: float,
    device: str = "cpu",
) -> list[Row]:
    """Time all providers of an operator in one mode.

    Args:
        case: The operator at one size.
        mode: One of its modes.
        seconds: Time for each provider.
        bandwidth: Bytes a second of a copy, from :func:`copy_bandwidth`.
        device: Where to run.

    Raises:
        WrongResultError: If a provider computes something else.
    """
    works = case.workloads(device)
    calls = {name: work.call(mode) for name, work in works.items()}
    timings = measure(calls, seconds=seconds, device=device)
    moved = case.bytes_moved(mode)
    return [
        Row(
            operator=case.operator,
            case=case.name,
            mode=mode,
            provider=name,
            shape=case.sizes,
            dtype="float32",
            threads=torch.get_num_threads(),
            timing=timing,
            bytes_moved=moved,
            copy_share=round(moved / (timing.p50 * 1e-6) / bandwidth, 3),
            peak_bytes=peak_bytes(calls[name], device),
            kept_bytes=kept_bytes(works[name].run, works[name].parameters)
            if mode == "both"
            else None,
        )
        for name, timing in timings.items()
    ]


def bench_network(case: NetworkCase, settings: Settings, say: Say) -> list[Row]:
    """Check, time and weigh every provider of an edge, a node, a cell or a supernet.

    Args:
        case: The network at one size.
        settings: Device, rivals and patience.
        say: Takes a line about what is going on.

    Raises:
        WrongResultError: If a provider computes something else.
    """
    device = settings.device
    say(f"{case.operator}, {case.name}: checking against float64")
    with contextlib.ExitStack() as stack:
        if any(PROVIDERS[name].compiles for name in settings.providers(case)):
            stack.enter_context(compile_cache())
            torch._dynamo.reset()
            allow_recompilation()
        works, notes, setup = _prepared(case, settings, say, device)
        errors = case.check(works, device)
        timings: dict[str, Mapping[str, Timing]] = {}
        for mode in ("forward", "both"):
            say(f"{case.operator}, {case.name}: timing {mode}")
            calls = {name: work.call(mode) for name, work in works.items()}
            timings[mode] = measure(
                calls, seconds=settings.seconds, rounds=settings.rounds, device=device
            )
        say(f"{case.operator}, {case.name}: weighing")
        weights = {
            name: _memory(case, name, work, settings, device) for name, work in works.items()
        }
        started = {
            (mode, name): launches(work.call(mode), device)
            for mode in timings
            for name, work in works.items()
        }
    common = {"operator": case.operator, "case": case.name, "shape": list(case.input_shapes[0])}
    common |= {"dtype": "float32", "threads": torch.get_num_threads(), "images": case.batch}
    rows = [
        Row(
            **common,
            mode=mode,
            provider=name,
            timing=timing,
            error=errors[name].outcome,
            gradient_error=errors[name].gradients,
            **started[mode, name],
            setup_seconds=round(setup.get(name, 0.0), 1),
            **(weights[name] if mode == "both" else {}),
        )
        for mode, found in timings.items()
        for name, timing in found.items()
    ]
    return rows + [
        Row(**common, mode="both", provider=name, timing=None, note=note)
        for name, note in notes.items()
    ]


def _prepared(
    case: NetworkCase, settings: Settings, say: Say, device: str
) -> tuple[dict[str, Workload], dict[str, str], dict[str, float]]:
    """Workloads of the providers that run, why the others do not, seconds of compiling."""
    works: dict[str, Workload] = {}
    notes: dict[str, str] = {}
    setup: dict[str, float] = {}
    for name in settings.providers(case):
        try:
            if PROVIDERS[name].compiles:
                say(f"{case.operator}, {case.name}: {name}")
                setup[name] = compile_seconds(case, name, settings.compile_seconds, device)
            works[name] = case.workload(name, device=device)
        except (ChildError, NotImplementedError) as error:
            notes[name] = str(error)
    return works, notes, setup


def _memory(
    case: NetworkCase, name: str, work: Workload, settings: Settings, device: str
) -> dict[str, int]:
    found = {
        "held_bytes": held_bytes(work.run, device),
        "peak_bytes": peak_bytes(work.call("both"), device),
    }
    # A checkpoint keeps its inputs by other means than autograd's: what it saves says nothing.
    if not PROVIDERS[name].checkpointed:
        found["kept_bytes"] = kept_bytes(work.run, work.parameters)
    if case.is_whole and settings.resident and device == "cpu" and not PROVIDERS[name].compiles:
        with contextlib.suppress(ChildError):
            found["resident_bytes"] = resident_bytes(case, name)
    return found


def bench_products(case: ProductCase, settings: Settings, say: Say) -> list[Row]:
    """Time exact products with second derivatives.

    Args:
        case: The supernet.
        settings: Device, rivals and patience.
        say: Takes a line about what is going on.

    Raises:
        WrongResultError: If a provider computes something else.
    """
    say(f"{case.operator}, {case.name}: checking against float64")
    rivals = ("eager", *(n for n in settings.rivals if n != "eager"))
    names = tuple(n for n in case.providers if not PROVIDERS[n].is_rival or n in rivals)
    calls, device = case.calls(names, settings.device), settings.device
    say(f"{case.operator}, {case.name}: timing")
    timings = measure(calls, seconds=settings.seconds, rounds=settings.rounds, device=device)
    return [
        Row(
            operator=case.operator,
            case=case.name,
            mode="step",
            provider=name,
            shape=list(case.net.input_shapes[0]),
            dtype="float32",
            threads=torch.get_num_threads(),
            timing=timing,
            images=case.net.batch,
            peak_bytes=peak_bytes(calls[name], device),
            **launches(calls[name], device),
        )
        for name, timing in timings.items()
    ]


def bench_steps(
    case: StepCase, settings: Settings, say: Say, searches: Sequence[str] = tuple(SEARCHES)
) -> list[Row]:
    """Time whole search steps, all in turn: ours of each search, and plain DARTS steps.

    On a GPU ours are timed made one by one and recorded.

    A search that is not written out in plain PyTorch stands beside the plain step of first order,
    the same measurement in the rows of each of them.

    Args:
        case: The supernet.
        settings: Device, rivals and patience.
        say: Takes a line about what is going on.
        searches: Keys of :data:`SEARCHES`.

    Raises:
        WrongResultError: If a step moves the weights elsewhere.
    """
    first, *_ = PLAIN
    device, narrow, wide_dtype = settings.device, torch.float32, torch.float64
    rivals = [name for name in ("eager", "channels-last") if name in settings.rivals]
    native = ["fused", *(["recorded"] if torch.device(device).type == "cuda" else [])]
    errors: dict[tuple[str, str], Errors] = {}
    for search in searches:
        say(f"step, {case.name(search)}: checking against float64")
        # There is no plain MSG-DAS: the reference is what it is compared with.
        plain = "eager" if search in PLAIN else "reference"
        truth = case.stepper(plain, search, wide_dtype, device).results()
        wide = case.stepper("fused", search, wide_dtype, device).results()
        pair = {plain: truth, "fused": wide}
        check(pair, truth, plain, f"a step of {search} in float64", tolerance=FLOAT64)
        names = [plain, *(n for n in rivals if n != plain and search in PLAIN), *native]
        results = {n: case.stepper(n, search, narrow, device).results() for n in names}
        what = f"a step of {search}"
        found = check(results, truth, plain, what, tolerance=DEEP, kinks=KINKS)
        errors |= {(search, name): error for name, error in found.items()}
    written_out = [first, *(search for search in searches if search in PLAIN and search != first)]
    calls = {(s, n): case.stepper(n, s, narrow, device) for s in written_out for n in rivals}
    ours = [*native, *(["reference"] if "reference" in settings.rivals else [])]
    calls |= {(s, n): case.stepper(n, s, narrow, device) for n in ours for s in searches}
    for _ in range(StepGraph.WARM_UP + 1):  # the last of them records
        for (_, name), call in calls.items():
            if name == "recorded":
                call()
    say(f"step, {case.net.name}: timing {len(calls)} searches")
    timings = measure(calls, seconds=settings.seconds, rounds=settings.rounds, device=device)
    # A replay allocates nothing: what a recording works in is kept between steps.
    peaks = {at: peak_bytes(call, device) for at, call in calls.items() if at[1] != "recorded"}
    started = {at: launches(call, device) for at, call in calls.items()}
    rows = [
        Row(
            operator="step",
            case=case.name(search),
            mode="step",
            provider=name,
            shape=list(case.net.input_shapes[0]),
            dtype="float32",
            threads=torch.get_num_threads(),
            timing=timings[at],
            images=case.net.batch,
            peak_bytes=peaks.get(at),
            **started[at],
            note=calls[at].why_not_recorded,
            error=errors[search, name].outcome if (search, name) in errors else None,
        )
        for search in searches
        for at in calls
        for name in [at[1]]
        if at[0] == search or (at[0] == first and name in rivals and search not in PLAIN)
    ]
    return rows + _large_step(case, settings, say)


def _large_step(case: StepCase, settings: Settings, say: Say) -> list[Row]:
    """Weigh a step of second order at many times the batch, where plain PyTorch needs far more."""
    if not settings.resident or torch.device(settings.device).type != "cpu":
        return []
    net = dataclasses.replace(case.net, batch=LARGE * case.net.batch)
    name = StepCase(net=net).name(SECOND_ORDER)
    say(f"step, {name}: weighing")
    try:
        found = {"resident_bytes": resident_step_bytes(net, "fused", SECOND_ORDER)}
    except ChildError as error:
        found = {"note": str(error)}
    return [
        Row(
            operator="step",
            case=name,
            mode="step",
            provider="fused",
            shape=list(net.input_shapes[0]),
            dtype="float32",
            threads=torch.get_num_threads(),
            timing=None,
            images=net.batch,
            **found,
        )
    ]
