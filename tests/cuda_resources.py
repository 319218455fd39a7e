"""What each CUDA kernel takes of a GPU, as nvcc reports it: registers, memory, spills.

    python -m tests.cuda_resources

compiles the kernels and writes ``tests/csrc/cuda_resources.json``, which a test compares.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

from csrc import build

REPOSITORY = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).resolve().parent / "csrc" / "cuda_resources.json"
ARCHITECTURES = ("8.0", "9.0")

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_\d+'\n"
    r".*Function properties for (?P=name)\n"
    r" *(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
)


def measure(tools: build.Toolchain) -> dict[str, object]:
    """Compile the kernels for each architecture and read the report.

    Raises:
        BuildError: If nvcc is missing or a file does not compile.
    """
    kernels = {}
    for architecture in ARCHITECTURES:
        folder = REPOSITORY / "build" / "cuda-check" / architecture
        report = build.compile_cuda(folder, tools=tools, architectures=architecture)
        kernels[architecture] = parse(report)
    return {"nvcc": tools.nvcc_version, "kernels": kernels}


def write(record: dict[str, object]) -> str:
    """Return the record as JSON with a line for each kernel."""
    return (
        re.sub(r"\{\s+(\"registers[^}]*?)\s+\}", _on_one_line, json.dumps(record, indent=2)) + "\n"
    )


def _on_one_line(match: re.Match) -> str:
    return "{" + re.sub(r"\s+", " ", match[1]) + "}"


def parse(report: str) -> dict[str, dict[str, int]]:
    """Return the numbers of each kernel, by its name in C++."""
    found = list(_KERNEL.finditer(report))
    names = _readable([match["name"] for match in found])
    if len(set(names)) < len(names):
        raise build.BuildError("two kernels have one name, so their numbers cannot be told apart")
    return {
        name: {
            "registers": int(match["registers"]),
            "shared": sum(map(int, re.findall(r"(\d+) bytes smem", match["rest"]))),
            "spills": int(match["stores"]) + int(match["loads"]),
            "stack": int(match["stack"]),
        }
        for name, match in sorted(zip(names, found, strict=True), key=lambda pair: pair[0])
    }


def _readable(names: list[str]) -> list[str]:
    command = [shutil.which("c++filt") or "c++filt"]
    text = subprocess.run(
        command, input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    # nvcc gives each unnamed namespace the name of its file and a number.
    text = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|_INTERNAL_\w+::", "", text)
    text = re.sub(r"pfn::(cuda|math)::", "", text)
    return [
        re.sub(r"^void run_kernel(?:_at_once)?<(.*?) ?>\(.*\)$", r"\1", line)
        for line in text.splitlines()
    ]


def main() -> None:
    """Write the record of this compiler."""
    record = measure(build.find_toolchain())
    RECORD.write_text(write(record))


if __name__ == "__main__":
    main()
