"""The environment record and the doctor's report: which kernels serve, and what mends the rest."""

import dataclasses
import importlib.util
import platform
from typing import TYPE_CHECKING

import torch

from pyfast_nas import _ext
from pyfast_nas._version import __version__

if TYPE_CHECKING:
    from pyfast_nas._csrc.build import Toolchain

__all__ = ["Info", "info"]

_INSTRUCTION_SETS = ("plain", "AVX2", "AVX-512")
_EXTRAS = ("pytest_benchmark", "tensorboard", "onnx", "optuna")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What this installation is and can do; ``str()`` of it is the report."""

    version: str
    python: str
    system: str
    torch: str
    torch_fits: bool
    library: str
    problem: str
    record: dict[str, object]
    instruction_set: str
    kernels: dict[str, dict[str, str]]
    gpus: tuple[str, ...]
    compilers: dict[str, str]
    extras: dict[str, bool]
    verdict: str

    def __str__(self) -> str:
        """Lay the record out for a person, ready to paste into a bug report."""
        fits = "ok" if self.torch_fits else "too old"
        lines = [
            f"pyfast_nas {self.version}   python {self.python}   {self.system}",
            f"torch      {self.torch} (needs >= 2.10)   {fits}",
            f"library    {self._library_line()}",
        ]
        for index, (name, where) in enumerate(self.kernels.items()):
            served = "   ".join(f"{device} {word}" for device, word in where.items())
            lines.append(f"{'kernels' if not index else '':<10} {name:<16} {served}")
        lines += [f"gpu {number}      {text}" for number, text in enumerate(self.gpus)]
        if not self.gpus:
            lines.append("gpu        none visible")
        found = "   ".join(f"{name} {text or 'not found'}" for name, text in self.compilers.items())
        lines.append(f"compilers  {found}")
        lines.append(
            "extras     "
            + "   ".join(f"{n} {'yes' if y else 'no'}" for n, y in self.extras.items())
        )
        lines.append("verdict    " + self.verdict.replace("\n", "\n           "))
        return "\n".join(lines)

    def _library_line(self) -> str:
        if not self.library:
            return f"none: {self.problem}"
        built = [str(self.record.get("cxx") or "an unknown compiler")]
        if self.record.get("nvcc"):
            built.append(f"CUDA {self.record['nvcc']} for {self.record['cuda_architectures']}")
        built.append(f"torch {self.record.get('torch')}")
        return f"{self.library}   built with {', '.join(built)}   in use: {self.instruction_set}"


def info() -> Info:
    """Collect the record of this installation; nothing is compiled and no GPU context is made.

    Example:
        >>> report = info()
        >>> report.version == __version__, "verdict" in str(report)
        (True, True)
    """
    # The rest of the package needs no sources, so it also runs in a checkout that is not installed.
    from pyfast_nas._csrc.build import find_toolchain

    tools = find_toolchain()
    loaded = _ext.library()
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    gpus = _visible_gpus()
    nowhere = {"cpu": "reference", "cuda": "reference"}
    kernels: dict[str, dict[str, str]] = {name: dict(nowhere) for name in _ext.OPERATORS}
    for device in nowhere:
        for name, word in _ext.kernels_in_use(device).items():
            kernels[name][device] = word
    level = -1
    if loaded.path:
        level = torch.ops.pyfast_nas.cpu_capability(-1)
    return Info(
        version=__version__,
        python=platform.python_version(),
        system=f"{platform.system().lower()} {platform.machine()}",
        torch=torch.__version__,
        torch_fits=(major, minor) >= (2, 10),
        library=loaded.path.name if loaded.path else "",
        problem=loaded.problem,
        record=loaded.record,
        instruction_set=_INSTRUCTION_SETS[level] if level >= 0 else "",
        kernels=kernels,
        gpus=gpus,
        compilers={
            "c++": tools.cxx_version,
            "nvcc": tools.nvcc_version,
            "ninja": "yes" if tools.ninja else "",
        },
        extras={name: importlib.util.find_spec(name) is not None for name in _EXTRAS},
        verdict=_verdict(bool(gpus), tools),
    )


def _visible_gpus() -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return ()
    described = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        memory = properties.total_memory / 2**30
        described.append(
            f"{properties.name}   compute {properties.major}.{properties.minor}   {memory:.1f} GiB"
        )
    return tuple(described)


def _verdict(has_gpu: bool, tools: "Toolchain") -> str:
    loaded = _ext.library()
    lacking = [
        device
        for device in ("cpu", *(("cuda",) if has_gpu else ()))
        if "reference" in _ext.kernels_in_use(device).values()
    ]
    if not lacking:
        return "all kernels active"
    if _ext.mode() == "reference":
        return (
            "compiled kernels are switched off by PYFAST_NAS_KERNELS=reference.\n"
            "Run:  unset PYFAST_NAS_KERNELS"
        )
    why = loaded.problem or str(
        loaded.record.get("reason") or "this install was built without them"
    )
    names = " and ".join("CUDA" if device == "cuda" else "CPU" for device in lacking)
    missing = [
        (not tools.cxx, "apt-get install g++", "a C++ compiler"),
        (not tools.ninja, "pip install ninja", "ninja"),
        ("cuda" in lacking and not tools.nvcc, "install the CUDA toolkit", "nvcc"),
    ]
    first = [f"{command} && pyfast-nas build" for absent, command, _ in missing if absent]
    needs = [name for absent, _, name in missing if absent]
    command = first[0] if first else "pyfast-nas build"
    note = f"   ({' and '.join(needs)} not found)" if needs else "   (a minute or less)"
    return (
        f"{names} kernels are missing, the PyTorch reference serves: {why}.\nRun:  {command}{note}"
    )
