"""What the sanitizer build must report, planted; ``make asan`` is the run over the whole grid."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csrc import build
from tests import sanitizers

CSRC = Path(build.__file__).resolve().parent
PLANTED = Path(__file__).resolve().parent / "planted"
TOOLS = build.find_toolchain()

OVERRUN = "AddressSanitizer: heap-buffer-overflow"
# What it is called where it begins in good memory and is wider than 16 bytes.
WIDE_OVERRUN = "AddressSanitizer: (heap-buffer-overflow|unknown-crash)"
# What a report of each mistake of planted.cpp matches; the first is none.
MISTAKES = {
    "none": "",
    "vector read": OVERRUN,
    "masked read": OVERRUN,
    "partial read": OVERRUN,
    "vector write": OVERRUN,
    "masked write": OVERRUN,
    "partial write": OVERRUN,
    "streamed write": OVERRUN,
    "shift": "shift exponent 37 is too large",
    "vector overflow": "signed integer overflow",
    "misaligned read": "misaligned address",
}

# Each mistake ends its process, so each gets one of its own.
COMMIT_THEM = """
import os, sys, torch
from pyfast_nas import _ext
print(_ext.library().path, flush=True)
x = torch.arange(37.0)
for level in range(torch.ops.pyfast_nas.cpu_capability(-1) + 1):
    torch.ops.pyfast_nas.cpu_capability(level)
    for mistake in range(int(sys.argv[1])):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(f"{sys.argv[2]}.{os.getpid()}", os.O_CREAT | os.O_WRONLY), 2)
            os._exit(0 if torch.equal(torch.ops.pyfast_nas.planted(x, mistake), x) else 77)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(level, mistake, child, status, flush=True)
"""


def copy_sources(to: Path) -> Path:
    """Lay out a csrc/ of the planted kernel alone, with the headers and the module of the real."""
    for folder in ("cpu", "math", "registration"):
        (to / folder).mkdir(parents=True)
        for header in (CSRC / folder).glob("*.h"):
            shutil.copy2(header, to / folder)
    shutil.copy2(CSRC / "registration" / "module.cpp", to / "registration")
    shutil.copy2(PLANTED / "planted.h", to / "cpu")
    shutil.copy2(PLANTED / "planted.cpp", to / "cpu")
    shutil.copy2(PLANTED / "registration.cpp", to / "registration" / "planted.cpp")
    return to


@pytest.mark.long
@pytest.mark.promise("M1")
@pytest.mark.skipif(not (TOOLS.cxx and TOOLS.ninja), reason="no C++ compiler or no ninja here")
def test_every_planted_mistake_is_reported(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(build, "SOURCES", copy_sources(tmp_path / "csrc"))
    reports = tmp_path / "reports"
    variables = sanitizers.environment(tmp_path, reports, TOOLS.cxx)
    sanitizers.build_into(tmp_path, TOOLS)
    command = [sys.executable, "-c", COMMIT_THEM, str(len(MISTAKES)), str(tmp_path / "errors")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100)
    path, *lines = done.stdout.splitlines()
    assert Path(path).is_relative_to(tmp_path), done.stderr
    assert done.returncode == 0 and len(lines) % len(MISTAKES) == 0, done.stderr
    for level, mistake, child, status in (map(int, line.split()) for line in lines):
        name, words = list(MISTAKES.items())[mistake]
        if words == OVERRUN and level > 0:
            words = WIDE_OVERRUN
        found = [reports / f"report.{child}", tmp_path / f"errors.{child}"]
        text = "".join(path.read_text() for path in found if path.exists())
        assert re.search(words, text), (
            f"{name} on level {level} was not reported: status {status}\n{text}"
        )
        assert ("planted.cpp" in text) == (status != 0) == bool(words), (name, level, text)


@pytest.mark.unsanitized("of the runner")
@pytest.mark.untwinned("of another runner")
def test_a_report_fails_a_run_that_passed(tmp_path: Path, capsys) -> None:
    assert sanitizers.outcome(0, "", tmp_path) == 0
    assert sanitizers.outcome(4, "", tmp_path) == 4
    assert sanitizers.outcome(0, "lanes.h:3: runtime error: signed overflow", tmp_path) == 1
    (tmp_path / "report.17").write_text("heap-buffer-overflow in a worker that nobody waited for")
    assert sanitizers.outcome(0, "", tmp_path) == 1
    printed = capsys.readouterr().err
    assert "that nobody waited for" in printed and "signed overflow" in printed
