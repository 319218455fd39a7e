"""``pyfast-nas build``: compile the packaged sources into the user's cache."""

import dataclasses
import sys
import time
from typing import Literal

__all__ = ["Build", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build:
    """Compile the kernels for this machine; they are loaded from the cache from then on."""

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    """What to compile: CPU kernels, CPU and CUDA kernels, or what the machine allows."""


def run(options: Build) -> int:
    """Build, load in a fresh process and report; return the exit code."""
    import os
    import subprocess

    from pyfast_nas import _ext
    from pyfast_nas._csrc import build
    from pyfast_nas.errors import BackendUnavailableError

    folder = _ext.cache_folder()
    started = time.perf_counter()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.getuid():
            raise BackendUnavailableError(f"build: {folder} belongs to another user")
        tools = build.find_toolchain()
        kind, reason = build.choose_kind(options.kind, tools)
        if kind == "none":
            raise BackendUnavailableError(f"build: nothing can be compiled here: {reason}")
        print(f"compiling {kind} kernels into {folder}", flush=True)
        record = build.build_library(folder, kind=kind, tools=tools)
    except (build.BuildError, OSError) as error:
        raise BackendUnavailableError(f"build: {error}") from None
    seconds = time.perf_counter() - started
    print(f"built {record['kind']} kernels in {seconds:.0f} s")
    # This process may hold an older library already: ask a new one.
    done = subprocess.run([sys.executable, "-m", "pyfast_nas", "info", "--check"], check=False)
    return done.returncode
