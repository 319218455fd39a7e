"""Find and load the compiled library once, or remember why not.

Nothing here compiles anything. The library is looked for in the cache of ``pyfast-nas build``
first and beside this file second; ``PYFAST_NAS_KERNELS`` (``auto``, ``reference``, ``require``)
says what to do with the answer.
"""

import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from pyfast_nas._version import __version__
from pyfast_nas.errors import BackendUnavailableError, ConfigError, FallbackWarning

__all__ = [
    "OPERATORS",
    "Library",
    "cache_folder",
    "compiled_for",
    "has_cuda_kernels",
    "kernels_in_use",
    "library",
    "mode",
    "use",
]

LIBRARY_NAME = "_C.abi3.so"
MODES = ("auto", "reference", "require")

# The differentiable operators a user can name; each has its backward beside it.
OPERATORS = (
    "mixed_sum",
    "gumbel_topk",
    "philox_uniform",
    "norm_mixed_sum",
    "fused_node",
    "tensor_list",
)
# What stands for an operator that is several natively.
_NATIVE = {"tensor_list": "tensor_list_dot"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Library:
    """The compiled library of this process, or the reason there is none.

    Attributes:
        path: Where it was loaded from; None when nothing was loaded.
        problem: Why nothing was loaded; empty when something was.
        record: What the build wrote about itself: compiler, flags, architectures, torch.
    """

    path: Path | None
    problem: str
    record: dict[str, object]


def cache_folder() -> Path:
    """Folder where ``pyfast-nas build`` puts the library for this version of the package."""
    named = os.environ.get("PYFAST_NAS_CACHE")
    if named:
        return Path(named) / __version__
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:  # no home folder
        return Path(os.devnull) / "pyfast_nas"
    return root / "pyfast_nas" / __version__


def library() -> Library:
    """Return what was loaded when the package was imported."""
    return _library


def compiled_for(device: torch.device) -> bool:
    """Say whether compiled kernels serve ``device``, warning once where they ought to and do not.

    Raises:
        BackendUnavailableError: If ``PYFAST_NAS_KERNELS=require`` and there is no kernel.
    """
    served = _served.get(device.type)
    return served if served is not None else _missing(device.type)


def has_cuda_kernels(device: torch.device) -> bool:
    """Say whether kernels for ``device`` are CUDA's: a GPU runs them, or in tests the CPU."""
    return device.type == "cuda" or _is_twin


def mode() -> str:
    """Return how operators are served: ``auto``, ``reference`` or ``require``."""
    return _mode


def kernels_in_use(device: str = "cpu") -> dict[str, str]:
    """Return ``compiled`` or ``reference`` for each operator that has kernels for ``device``."""
    _require_known(_mode)
    kind = torch.device(device).type
    word = "compiled" if _mode != "reference" and kind in _kernels else "reference"
    return dict.fromkeys(OPERATORS, word)


@contextlib.contextmanager
def use(mode: str) -> Iterator[None]:
    """Serve operators as ``mode`` says inside the block: ``auto``, ``reference`` or ``require``.

    Raises:
        ConfigError: If the mode is unknown.
    """
    before = _mode
    _set_mode(mode, "mode")
    try:
        yield
    finally:
        _set_mode(before, "mode")


def _set_mode(mode: str, name: str) -> None:
    global _mode
    _require_known(mode, name)
    _mode = mode
    _served.clear()
    if mode == "reference":
        _served.update(dict.fromkeys(("cpu", "cuda", "meta"), False))
    else:
        _served.update(dict.fromkeys(_kernels, True))


def _require_known(mode: str, name: str = "PYFAST_NAS_KERNELS") -> None:
    if mode not in MODES:
        raise ConfigError(f"{name} must be one of {', '.join(MODES)}, got {mode!r:.200}")


def _missing(kind: str) -> bool:
    """Answer for a device without kernels: raise, or warn and remember."""
    _require_known(_mode)
    if _mode == "require":
        raise BackendUnavailableError(
            f"compiled kernels for {kind} are required by PYFAST_NAS_KERNELS=require and cannot be "
            f"used: {_why(kind)}. Run:  pyfast-nas build"
        )
    if torch.compiler.is_compiling():
        return False  # a warning cannot be traced: the first eager call gives it
    _served[kind] = False
    if kind in {"cpu", "cuda"} and _mode == "auto" and kind not in _warned:
        _warned.add(kind)
        warnings.warn(
            f"pyfast_nas runs its slower PyTorch reference on {kind}: {_why(kind)}. "
            "Run:  pyfast-nas build   (pyfast-nas info tells the whole story)",
            FallbackWarning,
            stacklevel=4,
        )
    return False


def _why(kind: str) -> str:
    if _library.problem:
        return _library.problem
    reason = str(_library.record.get("reason") or "") if kind == "cuda" else ""
    return f"the library was built without {kind} kernels" + (f" ({reason})" if reason else "")


def _candidates() -> Iterator[Path]:
    cached = cache_folder() / LIBRARY_NAME
    if _is_file(cached):
        yield cached
    packaged = Path(__file__).with_name(LIBRARY_NAME)
    if packaged.is_file():
        yield packaged


def _is_file(path: Path) -> bool:
    try:
        # A library in a folder of somebody else's could be anything.
        return path.is_file() and path.stat().st_uid == os.getuid()
    except OSError:
        return False


def _read_record(folder: Path) -> dict[str, object]:
    try:
        record = json.loads((folder / "_build_info.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _load() -> Library:
    problem = ""
    for path in _candidates():
        record = _read_record(path.parent)
        try:
            loader = importlib.machinery.ExtensionFileLoader("pyfast_nas._C", str(path))
            spec = importlib.util.spec_from_file_location("pyfast_nas._C", path, loader=loader)
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
        except (ImportError, OSError, SystemError) as error:
            built = record.get("torch") or "an unknown torch"
            problem = (
                f"{path.name} does not load here (built with torch {built}, running torch "
                f"{torch.__version__}, Python {sys.version_info.major}.{sys.version_info.minor}): "
                f"{str(error).splitlines()[0][:200]}"
            )
            continue
        sys.modules["pyfast_nas._C"] = module
        return Library(path=path, problem="", record=record)
    record = _read_record(Path(__file__).parent)
    if not problem:
        reason = record.get("error") or record.get("reason")
        problem = "nothing was compiled" + (f" ({str(reason).splitlines()[0]})" if reason else "")
    return Library(path=None, problem=problem, record=record)


def _kernel_devices() -> tuple[str, ...]:
    keys = {"cpu": "CPU", "cuda": "CUDA"}
    return tuple(
        kind for kind, key in keys.items() if all(_has_kernel(name, key) for name in OPERATORS)
    )


def _has_kernel(name: str, key: str) -> bool:
    native = f"pyfast_nas::{_NATIVE.get(name, name)}"
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(native, key)
    except RuntimeError:  # the operator is not known at all
        return False


_served: dict[str, bool] = {}
_warned: set[str] = set()
_library = _load()
_is_twin = _library.record.get("kind") == "twin"
_kernels = _kernel_devices()
_mode = os.environ.get("PYFAST_NAS_KERNELS", "auto")
if _mode in MODES:
    _set_mode(_mode, "PYFAST_NAS_KERNELS")
# An unknown mode is refused at the first use, where the command line can show it in one line.
