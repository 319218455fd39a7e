"""Measurements that need a process of their own: resident memory, and compiling with a limit.

``python -m pyfast_nas.bench.child REQUEST`` answers one request, both as JSON.
"""

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import torch

from pyfast_nas.bench.memory import resident_peak
from pyfast_nas.bench.networks import DARTSCase, NASBench201Case, NetworkCase
from pyfast_nas.bench.parts import CellCase, EdgeCase, NodeCase
from pyfast_nas.bench.steps import StepCase

__all__ = [
    "ChildError",
    "allow_recompilation",
    "compile_cache",
    "compile_seconds",
    "main",
    "resident_bytes",
    "resident_step_bytes",
]


KINDS = {kind.__name__: kind for kind in (EdgeCase, NodeCase, CellCase, DARTSCase, NASBench201Case)}


class ChildError(Exception):
    """A child process gave no answer; the message says why."""


def resident_bytes(case: NetworkCase, provider: str, seconds: float = 600.0) -> int:
    """Resident peak of the first forward and backward pass in a fresh process.

    Counted from the process with network and batch in memory, after a batch of two has loaded the
    code: gradients, activations, scratch.

    Raises:
        ChildError: If the child does not answer.
    """
    return _ask("resident", case, provider, seconds)["bytes"]


def resident_step_bytes(net: DARTSCase, provider: str, search: str, seconds: float = 600.0) -> int:
    """Resident peak of the first search step in a fresh process, counted as in `resident_bytes`.

    The optimizers make their buffers in it.

    Raises:
        ChildError: If the child does not answer.
    """
    return _ask("resident", net, provider, seconds, search=search)["bytes"]


def compile_seconds(case: NetworkCase, provider: str, seconds: float, device: str = "cpu") -> float:
    """Compile forward and backward in a child; return how long it took.

    What it compiled is found by this process inside :func:`compile_cache`.

    Raises:
        ChildError: If it fails, or is not done after ``seconds``.
    """
    return _ask("compile", case, provider, seconds, device)["seconds"]


@contextlib.contextmanager
def compile_cache() -> Iterator[None]:
    """Let this process and its children share an empty cache of compiled code, then remove it."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="pyfast-nas-bench-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            else:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def _ask(
    task: str,
    case: NetworkCase,
    provider: str,
    seconds: float,
    device: str = "cpu",
    search: str = "",
) -> dict[str, float]:
    request = {
        "task": task,
        "kind": type(case).__name__,
        "case": dataclasses.asdict(case),
        "provider": provider,
        "device": device,
        "search": search,
    }
    request["threads"] = torch.get_num_threads()
    # A session of its own: the compiler's helpers end with it.
    child = subprocess.Popen(
        [sys.executable, "-m", "pyfast_nas.bench.child", json.dumps(request)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ChildError(f"not done after {seconds:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    if child.returncode != 0:
        lines = err.strip().splitlines() or [f"exit code {child.returncode}"]
        raise ChildError(lines[-1][:200])
    return json.loads(out.splitlines()[-1])


def main(arguments: list[str]) -> None:
    """Answer the request in the first argument."""
    request = json.loads(arguments[0])
    torch.set_num_threads(request["threads"])
    case, provider = KINDS[request["kind"]](**request["case"]), request["provider"]
    # Hundreds of edges share one line of code; by default only eight of them are compiled.
    allow_recompilation()
    if request["task"] == "resident":
        call = _call(case, provider, request["search"])
        _call(dataclasses.replace(case, batch=2), provider, request["search"])()
        _give_back()
        answer = {"bytes": resident_peak(call)}
    else:
        workload = case.workload(provider, device=request["device"])
        start = time.perf_counter()
        workload.forward()
        workload.results()
        answer = {"seconds": time.perf_counter() - start}
    print(json.dumps(answer))


def _call(case: NetworkCase, provider: str, search: str) -> Callable[[], object]:
    """Make a step of ``search``, or a forward and backward pass where there is none."""
    if search:
        return StepCase(net=case).stepper(provider, search)
    return case.workload(provider).call("both")


def _give_back() -> None:
    """Give the memory of a warm-up back."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)


def allow_recompilation() -> None:
    """Let ``torch.compile`` make as many versions of one function as there are edges."""
    torch._dynamo.config.cache_size_limit = 4096
    torch._dynamo.config.accumulated_cache_size_limit = 16384


if __name__ == "__main__":
    main(sys.argv[1:])
