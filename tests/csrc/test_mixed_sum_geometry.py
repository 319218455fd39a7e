"""Launch geometry and index arithmetic of mixed_sum, checked by the C++ compiler alone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"

# Every element belongs to one vector of one thread of one tile, also beyond 2^31 elements, and a
# grid stays below the limits of a launch.
GEOMETRY = r"""
#include "cuda/geometry.h"
using namespace pfn::cuda;

constexpr int64_t k2G = int64_t{1} << 31;

static_assert(divide_up(0, 7) == 0 && divide_up(1, 7) == 1 && divide_up(7, 7) == 1);
static_assert(divide_up(k2G + 1, 1024) == (k2G >> 10) + 1);
static_assert(divide_up(INT64_MAX, 1024) == (INT64_MAX >> 10) + 1, "no overflow");
static_assert(blocks_for(0, 1024, kMaxBlocks) == 0, "nothing to launch");
static_assert(blocks_for(1, 1024, kMaxBlocks) == 1);
static_assert(blocks_for(k2G * 64, 1024, kMaxBlocks) == kMaxBlocks);
static_assert(kMaxBlocks < k2G && kMaxReducingBlocks <= 65535);
static_assert(vector_width<double>(true) == 2 && vector_width<float>(true) == 4);
static_assert(vector_width<short>(true) == 8 && vector_width<short>(false) == 1);
static_assert(partial_rows<float>(0, true) == 0 && partial_rows<float>(1, true) == 1);
static_assert(partial_rows<float>(k2G, false) == kMaxReducingBlocks);

constexpr bool forward_is_a_bijection(int width) {
  int64_t next = 0;
  for (int64_t tile = 0; tile < 3; ++tile) {
    for (int thread = 0; thread < kThreads; ++thread, next += width) {
      if (forward_offset(tile, thread, width) != next) return false;
    }
  }
  return next == 3 * forward_tile(width);
}

constexpr bool backward_is_a_bijection(int width) {
  int64_t next = 0;
  for (int64_t tile = 0; tile < 3; ++tile) {
    for (int vector = 0; vector < kVectorsPerThread; ++vector) {
      for (int thread = 0; thread < kThreads; ++thread, next += width) {
        if (backward_offset(tile, thread, vector, width) != next) return false;
      }
    }
  }
  return next == 3 * backward_tile(width);
}

static_assert(forward_is_a_bijection(1) && forward_is_a_bijection(4) && forward_is_a_bijection(8));
static_assert(backward_is_a_bijection(1) && backward_is_a_bijection(8));
static_assert(forward_offset(k2G, 255, 8) == k2G * 2048 + 2040, "64 bits throughout");
static_assert(backward_offset(k2G, 255, 1, 8) == k2G * 4096 + 4088);
"""


@pytest.fixture
def compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if not found:
        pytest.skip("no C++ compiler is here to check the launch geometry")
    return found


def accepts(compiler: str, source: str, *flags: str) -> str:
    """Return the compiler's complaints about ``source``; empty when there are none."""
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *flags]
    command += [f"-I{CSRC}", "-x", "c++", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True).stderr


def test_geometry_around_two_to_the_31(compiler):
    assert accepts(compiler, GEOMETRY, "-Wconversion") == ""


def test_the_check_sees_a_narrow_index(compiler):
    planted = GEOMETRY + "\nint narrow(int64_t numel) { return forward_offset(numel, 0, 4); }\n"
    assert "conversion" in accepts(compiler, planted, "-Wconversion")


def test_cpu_kernels_convert_no_index_silently(compiler):
    source = (CSRC / "cpu" / "mixed_sum.cpp").read_text()
    assert accepts(compiler, source, "-Wconversion", "-DPFN_ISA=plain") == ""


def test_every_launch_is_checked_and_guarded():
    assert "return cudaGetLastError();" in (CSRC / "cuda" / "block.h").read_text()
    for path in sorted((CSRC / "cuda").rglob("*.*")):
        kernels = path.read_text()
        assert "<<<" not in kernels, "launch() of block.h is the only place that starts kernels"
        for before in re.findall(r"([^\n]*)\blaunch\([^)]*\)", kernels):
            if path.name != "block.h":
                assert before.strip().endswith(("return", "status_ =")), (path.name, before)
    launches = 0
    for path in sorted((CSRC / "registration").glob("*.cpp")):
        text = path.read_text()
        for statement in text.split(";"):
            if "cuda::launch_" in statement:
                assert "check_launch(" in statement or "return" in statement, (path.name, statement)
                assert "current_stream(" in text and "DeviceGuard guard" in text
                launches += 1
    assert launches > 12
