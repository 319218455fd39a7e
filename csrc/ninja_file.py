"""A ninja file: what is compiled from what, what is linked, and the run that does it."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .toolchain import BuildError, Toolchain

__all__ = ["NinjaFile"]


class NinjaFile:
    """Collects objects to compile and a library to link, then runs ninja on them."""

    def __init__(self, tools: Toolchain):
        self.objects: list[str] = []
        self._ninja = tools.ninja
        self._lines = [
            "ninja_required_version = 1.5",
            f"cxx_program = {_escape(tools.cxx)}",
            f"nvcc_program = {_escape(tools.nvcc)}",
            "rule cxx",
            "  command = $cxx_program -MMD -MF $out.d $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = c++ $out",
            "rule nvcc",
            # What it reports is kept beside the object, for runs that find it up to date.
            "  command = $nvcc_program -MD -MF $out.d $flags -c $in -o $out > $out.log 2>&1"
            " || { cat $out.log; exit 1; }",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = nvcc $out",
            "rule link",
            "  command = $cxx_program -shared $in $flags -o $out",
            "  description = link $out",
        ]

    def compile(
        self, sources: Iterable[Path], flags: Iterable[str], *, prefix: str, rule: str = "cxx"
    ) -> None:
        """Compile each source to an object ``prefix.name.o``, by the C++ compiler or by nvcc."""
        words = _words(flags)
        for source in sorted(sources):
            self.objects.append(f"{prefix}.{source.stem}.o")
            self._lines.append(f"build {self.objects[-1]}: {rule} {_escape(str(source))}")
            self._lines.append(f"  flags = {words}")

    def link(self, target: str, flags: Iterable[str] = ()) -> None:
        """Link everything that is compiled into a shared library."""
        self._lines.append(f"build {target}: link {' '.join(self.objects)}")
        self._lines.append(f"  flags = {_words(flags)}")

    def run(self, work: Path, *targets: str) -> str:
        """Make the targets in the folder ``work`` and return what the compilers printed.

        Raises:
            BuildError: If a compiler fails.
        """
        work.mkdir(parents=True, exist_ok=True)
        text = "\n".join(self._lines) + "\n"
        path = work / "build.ninja"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        command = [self._ninja, "-C", str(work), "-v", *targets]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            output = (done.stdout + done.stderr).splitlines()
            # Command lines hold the word too, in -Werror.
            errors = [line for line in output if re.search(r"(^|\s)(fatal )?error:", line)]
            raise BuildError("\n".join(errors[:5]) or "\n".join(output[-20:]))
        return done.stdout


def _words(flags: Iterable[str]) -> str:
    return " ".join(_quote(flag) for flag in flags)


def _escape(path: str) -> str:
    """Escape a path for a ninja file."""
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _quote(flag: str) -> str:
    """Quote a flag for the shell inside a ninja variable."""
    if all(c.isalnum() or c in "-_=+./,:" for c in flag):
        return flag
    return "'" + flag.replace("'", "'\\''").replace("$", "$$") + "'"
