"""What the number of sub-graphs costs: MSG-DAS steps at several K in both modes, beside DARTS."""

import contextlib
from collections.abc import Sequence

import torch

from pyfast_nas.bench.child import ChildError, resident_step_bytes
from pyfast_nas.bench.memory import peak_bytes
from pyfast_nas.bench.record import Row
from pyfast_nas.bench.settings import Say, Settings
from pyfast_nas.bench.steps import MODES, PATHS, StepCase, path_search
from pyfast_nas.bench.timing import measure
from pyfast_nas.bench.workload import FLOAT64, check

__all__ = ["DARTS", "bench_paths"]

DARTS = "first-order DARTS"


def bench_paths(
    case: StepCase, settings: Settings, say: Say, counts: Sequence[int] = PATHS
) -> list[Row]:
    """Time and weigh a step at each number of sub-graphs, all in turn.

    The rows ``eager`` and ``fused`` are the first-order DARTS step in plain PyTorch and ours; the
    others are named by mode and K.

    Args:
        case: The supernet.
        settings: Device and patience.
        say: Takes a line about what is going on.
        counts: Numbers of sub-graphs, of ``steps.PATHS``.

    Raises:
        WrongResultError: If a step moves the weights elsewhere than one without kernels.
    """
    device, net = settings.device, case.net
    for k in counts:
        say(f"paths, K = {k}: checking against float64")
        first, *_ = names = [path_search(mode, k) for mode in MODES]
        truth = case.stepper("reference", first, torch.float64, device).results()
        found = {n: case.stepper("fused", n, torch.float64, device).results() for n in names}
        what = f"a step with {k} sub-graphs"
        check({"reference": truth} | found, truth, "reference", what, tolerance=FLOAT64)
    # Row -> who makes which step.
    steps = {name: (name, DARTS) for name in ("eager", "fused")}
    ours = [path_search(mode, k) for mode in MODES for k in counts]
    steps |= {name: ("fused", name) for name in ours}
    calls = {row: case.stepper(*step, device=device) for row, step in steps.items()}
    say(f"paths, {net.name}: timing {len(calls)} steps")
    timings = measure(calls, seconds=settings.seconds, rounds=settings.rounds, device=device)
    say(f"paths, {net.name}: weighing")
    rows = []
    for row, (provider, search) in steps.items():
        resident = None
        if settings.resident and torch.device(device).type == "cpu":
            with contextlib.suppress(ChildError):
                resident = resident_step_bytes(net, provider, search)
        rows.append(
            Row(
                operator="paths",
                case=net.name,
                mode="step",
                provider=row,
                shape=list(net.input_shapes[0]),
                dtype="float32",
                threads=torch.get_num_threads(),
                timing=timings[row],
                images=net.batch,
                peak_bytes=peak_bytes(calls[row], device),
                resident_bytes=resident,
            )
        )
    return rows
