"""Compile the native library: the one place that knows sources, flags and targets.

``setup.py`` imports it from this checkout before the package exists, ``pyfast-nas build`` imports
its packaged copy, and the tests use it for the ``_host`` module and for the CUDA sources. Ninja
does the compiling, so a second call compiles only what changed.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from .ninja_file import NinjaFile
from .toolchain import (
    BuildError,
    Toolchain,
    cuda_architectures,
    find_toolchain,
    first_line,
    instruction_sets,
)

__all__ = [
    "BuildError",
    "Toolchain",
    "build_host",
    "build_library",
    "build_twin",
    "check_cuda_registration",
    "choose_kind",
    "compile_cuda",
    "describe",
    "find_toolchain",
    "source_digest",
]

SOURCES = Path(__file__).resolve().parent
LIBRARY_NAME = "_C.abi3.so"
KINDS = ("auto", "none", "cpu", "cuda")

# torch 2.10 and Python 3.11 are the oldest that one library serves.
_STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030b0000"]
# -Wconversion: no 32-bit number ever takes a size or an offset.
_WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
_COMMON = ["-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast"]
_ISA_FLAGS = {
    "plain": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ],
}
# -g1: reports need lines, and everything a debugger needs takes as long again to compile.
_SANITIZERS = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g1", "-O1"]
# Kernels of a GPU run by the CPU (twin/). The CPU's own are not registered then, what has no other
# needs one instruction set only, and unrolling is advice to nvcc.
_TWIN = ["-DPFN_TWIN", "-UPFN_X86_64", "-Wno-unused-function", "-Wno-unknown-pragmas", "-O2"]


def choose_kind(requested: str, tools: Toolchain) -> tuple[str, str]:
    """Resolve ``auto`` to what this machine can build; return the kind and the reason for less.

    Raises:
        BuildError: If the kind is unknown, or asked for by name and impossible here.
    """
    if requested not in KINDS:
        raise BuildError(f"PYFAST_NAS_BUILD must be one of {', '.join(KINDS)}, got {requested!r}")
    if requested == "none":
        return "none", "asked for with PYFAST_NAS_BUILD=none"
    missing = []
    if not tools.torch_root:
        missing.append("torch is not importable here (use: pip install --no-build-isolation .)")
    if not tools.cxx:
        missing.append("no C++ compiler was found (g++ or clang++)")
    if not tools.ninja:
        missing.append("ninja was not found (pip install ninja)")
    if missing:
        if requested != "auto":
            raise BuildError(f"cannot build {requested} kernels: {'; '.join(missing)}")
        return "none", "; ".join(missing)
    no_cuda = ""
    if not tools.torch_cuda:
        no_cuda = f"torch {tools.torch_version} has no CUDA"
    elif not tools.nvcc:
        no_cuda = "nvcc was not found"
    elif tools.nvcc_version.split(".")[0] != tools.torch_cuda.split(".")[0]:
        no_cuda = f"nvcc {tools.nvcc_version} does not fit torch's CUDA {tools.torch_cuda}"
    if requested == "cuda" and no_cuda:
        raise BuildError(f"cannot build cuda kernels: {no_cuda}")
    if requested == "cpu" or no_cuda:
        return "cpu", no_cuda
    return "cuda", ""


def build_library(
    out: Path,
    *,
    kind: str = "auto",
    work: Path | None = None,
    sanitize: bool = False,
    tools: Toolchain | None = None,
) -> dict[str, object]:
    """Compile ``_C.abi3.so`` into the folder ``out`` and write ``_build_info.json`` beside it.

    Args:
        out: Folder that receives the library.
        kind: ``auto``, ``none``, ``cpu`` or ``cuda``.
        work: Folder for objects; kept between calls so that only changes are compiled.
        sanitize: Build the CPU code with the address and undefined-behaviour sanitizers.
        tools: The toolchain, looked for when not given.

    Returns:
        The build record that was written.

    Raises:
        BuildError: If compiling fails, or ``kind`` was asked for by name and is impossible.
    """
    tools = tools or find_toolchain()
    chosen, reason = choose_kind(kind, tools)
    extra = _SANITIZERS if sanitize else []
    record = _start_record(out, tools, chosen, extra)
    record["reason"] = reason
    if chosen != "none":
        try:
            _compile_library(out, work, tools, chosen, extra)
        except BuildError as error:
            if kind != "auto":
                raise
            record.update(kind="none", error=str(error))
    _write_record(out, record)
    return record


def build_twin(out: Path, *, work: Path, tools: Toolchain | None = None) -> dict[str, object]:
    """Compile a library whose CPU operators are the CUDA kernels, run thread by thread on the CPU.

    For tests: everything of the CUDA path but the GPU itself. Same folders and errors as
    ``build_library``.
    """
    tools = tools or find_toolchain()
    choose_kind("cpu", tools)
    record = _start_record(out, tools, "twin", _TWIN)
    _compile_library(out, work, tools, "twin", _TWIN)
    _write_record(out, record)
    return record


def build_host(out: Path, *, tools: Toolchain | None = None) -> Path:
    """Compile the pybind11 module ``_host`` (the math headers on NumPy arrays) into ``out``.

    Raises:
        BuildError: If a tool is missing or compiling fails.
    """
    tools = tools or find_toolchain()
    if not (tools.cxx and tools.ninja):
        raise BuildError("the _host module needs a C++ compiler and ninja")
    if importlib.util.find_spec("pybind11") is None:
        raise BuildError("the _host module needs pybind11 (pip install pybind11)")
    import pybind11

    name = "_host" + sysconfig.get_config_var("EXT_SUFFIX")
    includes = [f"-I{SOURCES}", f"-isystem{sysconfig.get_path('include')}"]
    includes.append(f"-isystem{pybind11.get_include()}")
    file = NinjaFile(tools)
    flags = ["-std=c++17", *_COMMON, *_WARNINGS, *includes]
    file.compile([SOURCES / "host" / "host_module.cpp"], flags, prefix="host")
    file.link(name)
    file.run(out, name)
    return out / name


def compile_cuda(out: Path, *, tools: Toolchain | None = None, architectures: str = "") -> str:
    """Compile every ``.cu`` file to an object, warnings as errors; return nvcc's resource report.

    Kernels are torch-free, so neither a GPU nor a CUDA build of torch is needed.

    Raises:
        BuildError: If nvcc is missing or a file does not compile.
    """
    tools = tools or find_toolchain()
    if not (tools.nvcc and tools.ninja):
        raise BuildError("compiling the CUDA sources needs nvcc and ninja")
    file = NinjaFile(tools)
    flags = [*_nvcc_flags(architectures or cuda_architectures()), "-Xptxas=-v"]
    file.compile(_sources("cuda", "*.cu"), flags, prefix="cuda", rule="nvcc")
    file.run(out, *file.objects)
    return "\n".join((out / f"{name}.log").read_text() for name in file.objects)


def check_cuda_registration(out: Path, *, tools: Toolchain | None = None) -> None:
    """Compile the registrations as a CUDA build would, without linking them.

    Shows where torch has no CUDA that the code under ``PFN_WITH_CUDA`` fits the headers.

    Raises:
        BuildError: If a prerequisite is missing or a file does not compile.
    """
    tools = tools or find_toolchain()
    if not (tools.cxx and tools.nvcc and tools.ninja and tools.torch_root):
        raise BuildError(
            "checking the CUDA registration needs a C++ compiler, nvcc, ninja and torch"
        )
    file = NinjaFile(tools)
    flags = [*_registration_flags(tools), *_cuda_registration_flags(tools)]
    file.compile(_sources("registration"), flags, prefix="registration")
    file.run(out, *file.objects)


def describe(record: dict[str, object]) -> str:
    """Say in a line or two what a build made, and how to get more."""
    if record["error"]:
        return f"kernels did not compile, the reference serves: {record['error']}"
    if record["kind"] == "none":
        return f"nothing compiled, the reference serves: {record['reason']}"
    made = "CPU and CUDA kernels" if record["kind"] == "cuda" else "CPU kernels"
    why = f"   (no CUDA kernels: {record['reason']})" if record["reason"] else ""
    return f"built {made} with {record['cxx']}{why}"


def source_digest() -> str:
    """Identify the sources: the first 16 hex digits of a SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in {".h", ".cpp", ".cu", ".cuh", ".py"}:
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _start_record(out: Path, tools: Toolchain, kind: str, extra: list[str]) -> dict[str, object]:
    out.mkdir(parents=True, exist_ok=True)
    # A library left by an earlier build must never pass for the result of this one.
    (out / LIBRARY_NAME).unlink(missing_ok=True)
    return {
        "kind": kind,
        "reason": "",
        "error": "",
        "sources": source_digest(),
        "torch": tools.torch_version,
        "machine": platform.machine(),
        "cxx": tools.cxx_version,
        "nvcc": tools.nvcc_version if kind == "cuda" else "",
        "cuda_architectures": cuda_architectures() if kind == "cuda" else "",
        "instruction_sets": list(instruction_sets()),
        "flags": " ".join([*_COMMON, *extra]),
        "commit": _commit(),
    }


def _write_record(out: Path, record: dict[str, object]) -> None:
    (out / "_build_info.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def _compile_library(
    out: Path, work: Path | None, tools: Toolchain, kind: str, extra: list[str]
) -> None:
    work = work or out / "build"
    _library_file(tools, kind, extra).run(work, LIBRARY_NAME)
    partial = out / f".{LIBRARY_NAME}.{os.getpid()}"
    shutil.copy2(work / LIBRARY_NAME, partial)
    partial.replace(out / LIBRARY_NAME)


def _library_file(tools: Toolchain, kind: str, extra: list[str]) -> NinjaFile:
    file = NinjaFile(tools)
    flags = ["-std=c++17", *_COMMON, *_WARNINGS, *_machine_flags(), f"-I{SOURCES}", *extra]
    for isa in instruction_sets() if kind != "twin" else ("plain",):
        isa_flags = [f"-DPFN_ISA={isa}", *_ISA_FLAGS[isa]]
        file.compile(_sources("cpu"), [*flags, *isa_flags], prefix=f"cpu.{isa}")
    file.compile(_sources("node"), flags, prefix="node")
    registration = [*_registration_flags(tools), *extra]
    libraries = [f"-L{Path(tools.torch_root) / 'lib'}", "-ltorch_cpu", *extra]
    if kind == "cuda":
        registration += _cuda_registration_flags(tools)
        libraries += ["-ltorch_cuda", f"-L{tools.cuda_root / 'lib64'}", "-lcudart"]
        nvcc_flags = _nvcc_flags(cuda_architectures())
        file.compile(_sources("cuda", "*.cu"), nvcc_flags, prefix="cuda", rule="nvcc")
    elif kind == "twin":
        registration.append("-DPFN_WITH_CUDA")
        file.compile(_sources("twin"), flags, prefix="twin")
        kernel_flags = ["-xc++", *flags, *_contraction_flags()]
        file.compile(_sources("cuda", "*.cu"), kernel_flags, prefix="cuda")
    file.compile(_sources("registration"), registration, prefix="registration")
    file.link(LIBRARY_NAME, libraries)
    return file


def _contraction_flags() -> list[str]:
    """Round a product and a sum once where this processor can, as every GPU does."""
    import torch

    has_fma = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
    return ["-mfma"] if has_fma else []


def _sources(folder: str, pattern: str = "*.cpp") -> list[Path]:
    return list((SOURCES / folder).glob(pattern))


def _registration_flags(tools: Toolchain) -> list[str]:
    # Torch headers are system headers, so that our warnings stay errors and theirs stay silent.
    flags = ["-std=c++20", *_COMMON, *_WARNINGS, *_STABLE_ABI, *_machine_flags(), f"-I{SOURCES}"]
    flags.append(f"-isystem{Path(tools.torch_root) / 'include'}")
    return [*flags, f"-isystem{sysconfig.get_path('include')}"]


def _cuda_registration_flags(tools: Toolchain) -> list[str]:
    return ["-DPFN_WITH_CUDA", "-DUSE_CUDA", f"-isystem{tools.cuda_root / 'include'}"]


def _machine_flags() -> list[str]:
    return ["-DPFN_X86_64"] if len(instruction_sets()) > 1 else []


def _nvcc_flags(architectures: str) -> list[str]:
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-Wall,-Wextra,-fvisibility=hidden"]
    flags += ["-Werror=all-warnings", f"-I{SOURCES}", "--threads=0"]
    for name in architectures.split(";"):
        number = name.replace("+PTX", "").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _commit() -> str:
    git = shutil.which("git")
    if not git or not (SOURCES.parent / ".git").exists():
        return ""
    return first_line([git, "-C", str(SOURCES.parent), "rev-parse", "--short=12", "HEAD"])


def main() -> int:
    """Build from the command line: ``python -m csrc.build --inplace``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, default="auto")
    parser.add_argument("--sanitize", action="store_true", help="address and UB sanitizers")
    parser.add_argument("--brief", action="store_true", help="say in a line what was built")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--inplace", action="store_true", help="into pyfast_nas/ of this checkout")
    where.add_argument("--out", type=Path, help="folder that receives the library")
    options = parser.parse_args()
    root = SOURCES.parent
    out = root / "pyfast_nas" if options.inplace else options.out
    work = root / "build" / "inplace" if options.inplace else None
    try:
        record = build_library(out, kind=options.kind, work=work, sanitize=options.sanitize)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe(record) if options.brief else json.dumps(record, indent=2, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
