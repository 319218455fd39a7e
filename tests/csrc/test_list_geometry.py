"""Launch geometry of passes over lists of tensors, checked by the C++ compiler alone."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"

# Every value of every segment belongs to one vector of one thread, wide or not, beyond 2^31 values
# as well, and the segments of a launch fit into its parameter block.
GEOMETRY = r"""
#include "cuda/list_geometry.h"
using namespace pfn::cuda;

constexpr int64_t k2G = int64_t{1} << 31;

static_assert(list_tile(4) == 4096 && list_tile(8) == 2048 && list_tile(2) == 8192);
static_assert(list_tiles(0, 4) == 0 && list_tiles(1, 4) == 1 && list_tiles(4096, 4) == 1);
static_assert(list_tiles(4097, 4) == 2 && list_tiles(k2G + 1, 4) == (k2G >> 12) + 1);
static_assert(list_tiles(INT64_MAX, 2) == (INT64_MAX >> 13) + 1, "no overflow");

constexpr bool fits(int lists) {
  return list_segments(lists) > 64 && list_segments(lists) * 8 * (lists + 2) + 256 <= 4096;
}
static_assert(fits(1) && fits(2) && fits(3) && fits(4));

constexpr bool is_a_bijection(int width, int bytes) {
  int64_t next = 0;
  for (int64_t tile = 0; tile < 2; ++tile) {
    for (int step = 0; step < list_steps(width, bytes); ++step) {
      for (int thread = 0; thread < kThreads; ++thread, next += width) {
        if (list_offset(tile, step, thread, width, bytes) != next) return false;
      }
    }
  }
  return next == 2 * list_tile(bytes);
}
static_assert(is_a_bijection(4, 4) && is_a_bijection(1, 4) && is_a_bijection(2, 8));
static_assert(is_a_bijection(8, 2) && is_a_bijection(1, 2) && is_a_bijection(1, 8));
static_assert(list_offset(k2G, 3, 255, 4, 4) == k2G * 4096 + 4092, "64 bits throughout");

// Segments of 1, 2 and 1 tiles, and one tile far behind.
constexpr int64_t kFirst[] = {0, 1, 3, 4, k2G + 4};
static_assert(list_segment_of(kFirst, 5, 0) == 0 && list_segment_of(kFirst, 5, 1) == 1);
static_assert(list_segment_of(kFirst, 5, 2) == 1 && list_segment_of(kFirst, 5, 3) == 2);
static_assert(list_segment_of(kFirst, 5, k2G + 3) == 3);
static_assert(list_segment_of(kFirst, 5, k2G + 4) == 4 && list_segment_of(kFirst, 1, 0) == 0);
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


@pytest.mark.promise("K12a")
def test_geometry_around_two_to_the_31(compiler):
    assert accepts(compiler, GEOMETRY, "-Wconversion") == ""


def test_the_check_sees_a_wrong_place(compiler):
    for right, wrong in (("(1, 4) &&", "(3, 4) &&"), ("kFirst, 5, 2) == 1", "kFirst, 5, 2) == 2")):
        assert right in GEOMETRY
        assert "static assertion failed" in accepts(compiler, GEOMETRY.replace(right, wrong))


def test_the_check_sees_a_narrow_index(compiler):
    planted = GEOMETRY + "\nint narrow(int64_t tile) { return list_offset(tile, 0, 0, 4, 4); }\n"
    assert "conversion" in accepts(compiler, planted, "-Wconversion")


def test_cpu_kernels_convert_no_index_silently(compiler):
    source = (CSRC / "cpu" / "tensor_list.cpp").read_text()
    assert accepts(compiler, source, "-Wconversion", "-DPFN_ISA=plain") == ""


# What one pass leaves for the next, where numbers are at their limits.
SCALARS = r"""
#include <cmath>
#include <cstdio>
#include "math/tensor_list.h"
using namespace pfn::math;

int main() {
  const float three = 3.0f;
  const double zero = 0.0;
  const auto show = [](ScalarFactor factor) { std::printf("%g ", factor_of(factor)); };
  show({2.0, &three, nullptr, false});
  show({2.0, nullptr, nullptr, true});
  show({0.5, nullptr, &zero, true});
  show({6.0, &three, nullptr, true});
  std::printf("\n");
  std::printf("%g %g %g ", finished(9.0, Finish::sum, 0.1), finished(9.0, Finish::root, 0.1),
              finished(4.0, Finish::step, 0.1));
  std::printf("%g %d\n", finished(0.0, Finish::step, 0.1),
              std::isnan(finished(INFINITY, Finish::step, 0.1)));
  double state[kCgNumbers] = {4.0, 0.0, 0.0, 0.0};
  cg_take_curvature(2.0, state);
  cg_take_residual(1.0, state);
  std::printf("%g %g %g %g\n", state[0], state[1], state[2], state[3]);
  cg_take_curvature(0.0, state);
  cg_take_residual(77.0, state);
  std::printf("%g %g %g %g\n", state[0], state[1], state[2], state[3]);
  double solved[kCgNumbers] = {0.0, 5.0, 5.0, 0.0};
  cg_take_curvature(0.0, solved);
  cg_take_residual(0.0, solved);
  std::printf("%g %g %g %g\n", solved[0], solved[1], solved[2], solved[3]);
  double spoiled[kCgNumbers] = {4.0, 0.0, 0.0, 0.0};
  cg_take_curvature(NAN, spoiled);
  std::printf("%d %g\n", std::isnan(spoiled[1]), spoiled[3]);
}
"""
WANTED = ["6 2 0 2 ", "9 3 0.05 0 1", "1 2 0.25 0", "1 0 0.25 1", "0 0 0 0", "1 0"]


def test_scalars_between_passes(compiler, tmp_path):
    program = tmp_path / "scalars"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}", "-x", "c++", "-"]
    subprocess.run([*command, "-o", str(program)], input=SCALARS, text=True, check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == WANTED
