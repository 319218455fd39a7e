"""Products on tensor cores: fragments, shared memory and rounding, on the CPU's twin of CUDA."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import twin

CSRC = Path(__file__).resolve().parents[2] / "csrc"

PROGRAM = r"""
#include <cmath>
#include <cstdio>
#include <exception>
#include <vector>

#include "cuda/node/outer.h"

using namespace pfn;
using namespace pfn::cuda;

// A small integer for every place.
PFN_DEVICE float left_number(int row, int step) {
  return static_cast<float>((row * 7 + step * 3) % 11 - 5);
}
PFN_DEVICE float right_number(int step, int column) {
  return static_cast<float>((step * 5 + column * 2) % 13 - 6);
}
template <int kSteps>
float expected(int row, int column) {
  float sum = 0;
  for (int k = 0; k < kSteps; ++k) sum += left_number(row, k) * right_number(k, column);
  return sum;
}

// One product of a warp from its fragments, on tensor cores or by shuffles.
struct Warp {
  static constexpr int kThreads = 32;
  using Shared = NothingShared;

  float* out;  // [16, 8]
  bool shuffles;

  void run(const Block& block, Shared&) const {
    const int lane = block.thread();
    float left[4], right[2], sum[4] = {};
    for (int i = 0; i < 4; ++i) left[i] = left_number(left_row(lane, i), left_step(lane, i));
    for (int i = 0; i < 2; ++i) right[i] = right_number(right_step(lane, i), right_column(lane));
    if (shuffles) {
      multiply_by_shuffles(block, left, right, sum);
    } else {
      multiply_tensors(block, left, right, sum);
    }
    for (int i = 0; i < 4; ++i) {
      out[product_row(lane, i / 2) * 8 + product_column(lane, i % 2)] = sum[i];
    }
  }
};

// One step of a tile.
template <int kC>
struct Tile {
  using Shape = TileShape<kC, true>;
  static constexpr int kThreads = Shape::kThreads;
  using Shared = Operands<float, kC, true>;

  float* out;  // [pixels, channels]

  void run(const Block& block, Shared& shared) const {
    for (int i = block.thread(); i < kDepth * Shape::kPixels; i += kThreads) {
      shared.pixels[i % kDepth][i / kDepth] = left_number(i / kDepth, i % kDepth);
    }
    for (int i = block.thread(); i < kDepth * kC; i += kThreads) {
      shared.channels[i % kDepth][i / kDepth] = right_number(i % kDepth, i / kDepth);
    }
    block.sync();
    float sum[kStrip][4] = {};
    multiply(block, shared, sum);
    for (int i = 0; i < 16; ++i) {
      const int pixel = Shape::pixel_of(block.thread(), i / 4);
      out[pixel * kC + Shape::channel_of(block.thread(), i % 4)] = sum[i / 4][i % 4];
    }
  }
};

// The pixels that are in shared memory at once, for the gradient of a matrix.
template <int kC>
struct Outer {
  using Shape = OuterShape<kC, true>;
  static constexpr int kThreads = Shape::kThreads;
  using Shared = OuterOperands<float, kC>;

  float* out;  // [groups, channels, inner channels]

  void run(const Block& block, Shared& shared) const {
    const int thread = block.thread(), group = Shape::group_of(thread);
    for (int i = thread; i < kC * Shape::kPixels; i += kThreads) {
      shared.e[i / Shape::kPixels][i % Shape::kPixels] =
          left_number(i / Shape::kPixels, i % Shape::kPixels);
    }
    for (int i = thread; i < kDepth * Shape::kPixels; i += kThreads) {
      shared.z[i / Shape::kPixels][i % Shape::kPixels] =
          right_number(i % Shape::kPixels, i / Shape::kPixels);
    }
    block.sync();
    float sum[Shape::kRows][4] = {};
    for (int pixel = group * 8; pixel < Shape::kPixels; pixel += Shape::kGroups * 8) {
      multiply_outer<true>(block, shared, pixel, sum);
    }
    for (int i = 0; i < Shape::kRows * 4; ++i) {
      const int at = (group * kC + Shape::channel_of(thread, i / 4)) * kDepth;
      out[at + Shape::inner_of(thread, i % 4)] = sum[i / 4][i % 4];
    }
  }
};

int warps(bool shuffles) {
  std::vector<float> out(16 * 8, NAN);
  launch(Warp{out.data(), shuffles}, 1, 1, nullptr);
  for (int i = 0; i < 16 * 8; ++i) {
    if (out[static_cast<size_t>(i)] != expected<8>(i / 8, i % 8)) return 1;
  }
  return 0;
}

template <int kC>
int tiles() {
  std::vector<float> out(4096, NAN);
  launch(Tile<kC>{out.data()}, 1, 1, nullptr);
  for (int i = 0; i < 4096; ++i) {
    if (out[static_cast<size_t>(i)] != expected<kDepth>(i / kC, i % kC)) return 1;
  }
  constexpr int kNumbers = kC * kDepth, kGroups = OuterShape<kC, true>::kGroups;
  std::vector<float> parts(kGroups * kNumbers, NAN);
  launch(Outer<kC>{parts.data()}, 1, 1, nullptr);
  for (int i = 0; i < kNumbers; ++i) {
    float sum = 0;
    for (int g = 0; g < kGroups; ++g) sum += parts[static_cast<size_t>(g * kNumbers + i)];
    if (sum != expected<64>(i / kDepth, i % kDepth)) return 1;
  }
  return 0;
}

bool rounds_to(float value, float to) {
  return math::bits_of(math::round_tf32(value)) == math::bits_of(to);
}

// To ten bits, ties away from zero; what has no more stays, NaN too.
int roundings() {
  const float unit = std::ldexp(1.0f, -10), most = std::ldexp(2.0f - unit, 127);
  for (float sign : {1.0f, -1.0f}) {
    if (!rounds_to(sign * (1 + unit / 2), sign * (1 + unit))) return 1;
    if (!rounds_to(sign * (1 + unit * 0.499f), sign)) return 1;
    if (!rounds_to(sign * (1 + unit * 1.5f), sign * (1 + 2 * unit))) return 1;
    for (float same : {0.0f, most, INFINITY}) {
      if (!rounds_to(sign * same, sign * same)) return 1;
    }
    if (!rounds_to(sign * 65504, sign * 65504)) return 1;  // the largest of float16
    if (!rounds_to(sign * std::ldexp(1.0f, -24), sign * std::ldexp(1.0f, -24))) return 1;
  }
  const float least = math::float_of(0x7f800001u);  // of NaN
  return !std::isnan(math::round_tf32(NAN)) || !std::isnan(math::round_tf32(least));
}

struct Unrounded {
  static constexpr int kThreads = 32;
  using Shared = NothingShared;
  void run(const Block& block, Shared&) const {
    const float left[4] = {1.0001f, 1, 1, 1}, right[2] = {1, 1};
    float sum[4] = {};
    multiply_tensors(block, left, right, sum);
  }
};

int main() {
  if (roundings() != 0 || warps(true) != 0) return 1;
  if (warps(false) != 0 || tiles<16>() != 0 || tiles<32>() != 0 || tiles<64>() != 0) return 1;
  try {
    launch(Unrounded{}, 1, 1, nullptr);
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 0;
  }
  return 1;
}
"""


def run(csrc: Path, folder: Path, order: str = "forward") -> subprocess.CompletedProcess:
    """Compile the program against a csrc/ and run it."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler is here to compile the twin")
    program = folder / "tensor_cores"
    command = [compiler, "-std=c++17", "-O1", "-DPFN_TWIN", "-Wno-unknown-pragmas", f"-I{csrc}"]
    command += ["-x", "c++", "-", str(csrc / "twin" / "block.cpp"), "-o", str(program)]
    subprocess.run(command, input=PROGRAM, text=True, check=True)
    return subprocess.run(
        [str(program)], env={"PFN_TWIN_ORDER": order}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("order", twin.ORDERS)
def test_fragments_hold_what_a_tensor_core_takes(tmp_path, order):
    done = run(CSRC, tmp_path, order)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a factor for a tensor core that is not rounded to TF32\n"


@pytest.mark.parametrize(
    ("header", "right", "wrong"),
    [
        ("tensor_core.h", "return lane / 4 + i % 2 * 8", "return lane / 4 + i / 2 * 8"),
        ("tensor_core.h", "return lane % 4 + i / 2 * 4", "return lane % 4 + i % 2 * 4"),
        ("tensor_core.h", "return lane % 4 + i * 4", "return lane % 4 * 2 + i"),
        ("tensor_core.h", "int lane) { return lane / 4; }", "int lane) { return lane % 8; }"),
        ("tensor_core.h", "return lane / 4 + i * 8", "return lane / 4 * 2 + i"),
        ("tensor_core.h", "return lane % 4 * 2 + i", "return lane % 4 + i * 4"),
        ("tensor_core.h", "left[k / 4 * 2 + 1]", "left[k / 4 + 1]"),
        ("tile.h", "[pixel + m * 16 +", "[pixel + m * 8 +"),
        ("tile.h", "operands.channels[step +", "operands.channels["),
        ("outer.h", "Shape::kGroup / kWarpSize * 16", "Shape::kGroup / kWarpSize * 8"),
        ("outer.h", "operands.z[n * 8 +", "operands.z[n * 4 +"),
    ],
)
def test_a_planted_mistake_is_found(tmp_path, header, right, wrong):
    planted = tmp_path / "csrc"
    for folder in ("cuda", "math", "node", "twin"):
        shutil.copytree(CSRC / folder, planted / folder)
    path = planted / "cuda" / "node" / header
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    assert run(planted, tmp_path).returncode == 1
