"""What this machine can build with: compilers, ninja and torch, and the flags that follow."""

import dataclasses
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

__all__ = [
    "BuildError",
    "Toolchain",
    "cuda_architectures",
    "find_toolchain",
    "first_line",
    "instruction_sets",
]

_DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"


class BuildError(RuntimeError):
    """The compiler or a prerequisite failed; the message holds its first error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toolchain:
    """What this machine can build with; an empty string means not found."""

    cxx: str
    cxx_version: str
    nvcc: str
    nvcc_version: str
    ninja: str
    torch_version: str
    torch_cuda: str
    torch_root: str

    @property
    def cuda_root(self) -> Path:
        """Folder of the CUDA toolkit; nvcc on PATH may be a script that calls the real one."""
        beside = Path(self.nvcc).resolve().parent.parent
        found = (beside / "include" / "cuda_runtime.h").exists()
        return beside if found else Path("/usr/local/cuda")


def find_toolchain() -> Toolchain:
    """Look for a C++ compiler, nvcc, ninja and torch; nothing is compiled or imported but torch."""
    cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or ""
    cxx = shutil.which(cxx) or ""
    nvcc = _find_nvcc()
    torch_version = torch_cuda = torch_root = ""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch_version, torch_cuda = torch.__version__, torch.version.cuda or ""
        torch_root = str(Path(torch.__file__).parent)
    return Toolchain(
        cxx=cxx,
        cxx_version=first_line([cxx, "--version"]) if cxx else "",
        nvcc=nvcc,
        nvcc_version=_nvcc_version(nvcc) if nvcc else "",
        ninja=_find_ninja(),
        torch_version=torch_version,
        torch_cuda=torch_cuda,
        torch_root=torch_root,
    )


def cuda_architectures() -> str:
    """Architectures to compile for: ``TORCH_CUDA_ARCH_LIST``, else the GPU here, else a default."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if named:
        return ";".join(named.replace(",", ";").replace(" ", ";").split(";"))
    smi = shutil.which("nvidia-smi")
    if smi:
        query = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        present = sorted({line.strip() for line in found.stdout.splitlines() if line.strip()})
        if found.returncode == 0 and present:
            return ";".join([*present[:-1], present[-1] + "+PTX"])
    return _DEFAULT_CUDA_ARCHITECTURES


def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that the loops of the CPU are compiled for on this machine."""
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return ("plain", "avx2", "avx512") if x86 else ("plain",)


def first_line(command: list[str]) -> str:
    """Return the first line that a program prints; empty where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.splitlines()[0].strip() if done.stdout else ""


def _find_ninja() -> str:
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        candidate = Path(ninja.BIN_DIR) / "ninja"
        if candidate.exists():
            return str(candidate)
    return shutil.which("ninja") or ""


def _find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return str(Path(home) / "bin" / "nvcc")
    default = Path("/usr/local/cuda/bin/nvcc")
    return str(default) if default.exists() else shutil.which("nvcc") or ""


def _nvcc_version(nvcc: str) -> str:
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    _, _, tail = text.stdout.partition("release ")
    return tail.split(",")[0].strip()
