"""Compile the native library: the one place that knows sources, flags and targets.

``setup.py`` loads this file by path before the package exists, ``pyfast-nas build`` imports its
packaged copy, and the tests use it for the ``_host`` module and for compiling the CUDA sources.
It writes a ninja file and runs ninja, so a second call compiles only what changed.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = [
    "BuildError",
    "Toolchain",
    "build_host",
    "build_library",
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
        cxx_version=_first_line([cxx, "--version"]) if cxx else "",
        nvcc=nvcc,
        nvcc_version=_nvcc_version(nvcc) if nvcc else "",
        ninja=_find_ninja(),
        torch_version=torch_version,
        torch_cuda=torch_cuda,
        torch_root=torch_root,
    )


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
    out.mkdir(parents=True, exist_ok=True)
    # A library left by an earlier build must never pass for the result of this one.
    (out / LIBRARY_NAME).unlink(missing_ok=True)
    record: dict[str, object] = {
        "kind": chosen,
        "reason": reason,
        "error": "",
        "sources": source_digest(),
        "torch": tools.torch_version,
        "machine": platform.machine(),
        "cxx": tools.cxx_version,
        "nvcc": tools.nvcc_version if chosen == "cuda" else "",
        "cuda_architectures": cuda_architectures() if chosen == "cuda" else "",
        "instruction_sets": list(_instruction_sets()),
        "flags": " ".join([*_COMMON, *(_SANITIZERS if sanitize else [])]),
        "commit": _commit(),
    }
    if chosen != "none":
        work = work or out / "build"
        work.mkdir(parents=True, exist_ok=True)
        _write_ninja(work, _library_statements(tools, chosen, sanitize))
        try:
            _run_ninja(tools, work, LIBRARY_NAME)
        except BuildError as error:
            if kind != "auto":
                raise
            record.update(kind="none", error=str(error))
        else:
            partial = out / f".{LIBRARY_NAME}.{os.getpid()}"
            shutil.copy2(work / LIBRARY_NAME, partial)
            partial.replace(out / LIBRARY_NAME)
    (out / "_build_info.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
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

    out.mkdir(parents=True, exist_ok=True)
    name = "_host" + sysconfig.get_config_var("EXT_SUFFIX")
    includes = [f"-I{SOURCES}", f"-isystem{sysconfig.get_path('include')}"]
    includes.append(f"-isystem{pybind11.get_include()}")
    flags = ["-std=c++17", *_COMMON, *_WARNINGS, *includes]
    source = SOURCES / "host" / "host_module.cpp"
    statements = [
        *_rules(tools),
        *_compile("cxx", "host_module.o", source, flags),
        *_link(name, ["host_module.o"], []),
    ]
    _write_ninja(out, statements)
    _run_ninja(tools, out, name)
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
    out.mkdir(parents=True, exist_ok=True)
    flags = [*_nvcc_flags(architectures or cuda_architectures()), "-Xptxas=-v"]
    statements, objects = _rules(tools), []
    for source in sorted((SOURCES / "cuda").glob("*.cu")):
        objects.append(f"cuda.{source.stem}.o")
        statements += _compile("nvcc", objects[-1], source, flags)
    _write_ninja(out, statements)
    return _run_ninja(tools, out, *objects)


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
    out.mkdir(parents=True, exist_ok=True)
    statements, objects = _rules(tools), []
    for source in sorted((SOURCES / "registration").glob("*.cpp")):
        objects.append(f"registration.{source.stem}.o")
        flags = [*_registration_flags(tools), *_cuda_registration_flags(tools)]
        statements += _compile("cxx", objects[-1], source, flags)
    _write_ninja(out, statements)
    _run_ninja(tools, out, *objects)


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


def _library_statements(tools: Toolchain, kind: str, sanitize: bool) -> list[str]:
    statements, objects = _rules(tools), []
    extra = _SANITIZERS if sanitize else []
    for isa in _instruction_sets():
        flags = ["-std=c++17", *_COMMON, *_WARNINGS, *_machine_flags(), f"-I{SOURCES}"]
        flags += [f"-DPFN_ISA={isa}", *_ISA_FLAGS[isa], *extra]
        for source in sorted((SOURCES / "cpu").glob("*.cpp")):
            objects.append(f"cpu.{isa}.{source.stem}.o")
            statements += _compile("cxx", objects[-1], source, flags)
    flags = ["-std=c++17", *_COMMON, *_WARNINGS, *_machine_flags(), f"-I{SOURCES}", *extra]
    for source in sorted((SOURCES / "node").glob("*.cpp")):
        objects.append(f"node.{source.stem}.o")
        statements += _compile("cxx", objects[-1], source, flags)
    flags = [*_registration_flags(tools), *extra]
    libraries = [f"-L{Path(tools.torch_root) / 'lib'}", "-ltorch_cpu", *extra]
    if kind == "cuda":
        flags += _cuda_registration_flags(tools)
        libraries += ["-ltorch_cuda", f"-L{_toolkit(tools) / 'lib64'}", "-lcudart"]
        for source in sorted((SOURCES / "cuda").glob("*.cu")):
            objects.append(f"cuda.{source.stem}.o")
            statements += _compile("nvcc", objects[-1], source, _nvcc_flags(cuda_architectures()))
    for source in sorted((SOURCES / "registration").glob("*.cpp")):
        objects.append(f"registration.{source.stem}.o")
        statements += _compile("cxx", objects[-1], source, flags)
    return statements + _link(LIBRARY_NAME, objects, libraries)


def _registration_flags(tools: Toolchain) -> list[str]:
    # Torch headers are system headers, so that our warnings stay errors and theirs stay silent.
    flags = ["-std=c++20", *_COMMON, *_WARNINGS, *_STABLE_ABI, *_machine_flags(), f"-I{SOURCES}"]
    flags.append(f"-isystem{Path(tools.torch_root) / 'include'}")
    return [*flags, f"-isystem{sysconfig.get_path('include')}"]


def _cuda_registration_flags(tools: Toolchain) -> list[str]:
    return ["-DPFN_WITH_CUDA", "-DUSE_CUDA", f"-isystem{_toolkit(tools) / 'include'}"]


def _toolkit(tools: Toolchain) -> Path:
    """Folder of the CUDA toolkit; nvcc on PATH may be a script that calls the real one."""
    beside = Path(tools.nvcc).resolve().parent.parent
    found = (beside / "include" / "cuda_runtime.h").exists()
    return beside if found else Path("/usr/local/cuda")


def _machine_flags() -> list[str]:
    return ["-DPFN_X86_64"] if len(_instruction_sets()) > 1 else []


def _instruction_sets() -> tuple[str, ...]:
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return ("plain", "avx2", "avx512") if x86 else ("plain",)


def _nvcc_flags(architectures: str) -> list[str]:
    flags = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-Wall,-Wextra,-fvisibility=hidden"]
    flags += ["-Werror=all-warnings", f"-I{SOURCES}", "--threads=0"]
    for name in architectures.split(";"):
        number = name.replace("+PTX", "").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _rules(tools: Toolchain) -> list[str]:
    return [
        "ninja_required_version = 1.5",
        f"cxx_program = {_escape(tools.cxx)}",
        f"nvcc_program = {_escape(tools.nvcc)}",
        "rule cxx",
        "  command = $cxx_program -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = c++ $out",
        "rule nvcc",
        "  command = $nvcc_program -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = nvcc $out",
        "rule link",
        "  command = $cxx_program -shared $in $flags -o $out",
        "  description = link $out",
    ]


def _compile(rule: str, target: str, source: Path, flags: Iterable[str]) -> list[str]:
    words = " ".join(_quote(flag) for flag in flags)
    return [f"build {target}: {rule} {_escape(str(source))}", f"  flags = {words}"]


def _link(target: str, objects: Sequence[str], flags: Iterable[str]) -> list[str]:
    words = " ".join(_quote(flag) for flag in flags)
    return [f"build {target}: link {' '.join(objects)}", f"  flags = {words}"]


def _write_ninja(work: Path, statements: Sequence[str]) -> None:
    text = "\n".join(statements) + "\n"
    path = work / "build.ninja"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _run_ninja(tools: Toolchain, work: Path, *targets: str) -> str:
    command = [tools.ninja, "-C", str(work), "-v", *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).splitlines()
        # Command lines hold the word too, in -Werror.
        errors = [line for line in output if re.search(r"(^|\s)(fatal )?error:", line)]
        raise BuildError("\n".join(errors[:5]) or "\n".join(output[-20:]))
    return done.stdout


def _escape(path: str) -> str:
    """Escape a path for a ninja file."""
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _quote(flag: str) -> str:
    """Quote a flag for the shell inside a ninja variable."""
    if all(c.isalnum() or c in "-_=+./,:" for c in flag):
        return flag
    return "'" + flag.replace("'", "'\\''").replace("$", "$$") + "'"


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


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.splitlines()[0].strip() if done.stdout else ""


def _commit() -> str:
    git = shutil.which("git")
    if not git or not (SOURCES.parent / ".git").exists():
        return ""
    return _first_line([git, "-C", str(SOURCES.parent), "rev-parse", "--short=12", "HEAD"])


def main() -> int:
    """Build from the command line: ``python csrc/build.py --inplace``."""
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
