"""How the CUDA kernels of a fused node share out pixels, by a program that g++ compiles alone."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"

PROGRAM = r"""
#include <cstdio>
#include <vector>

#include "cuda/node/maps.h"
#include "cuda/node/norms.h"
#include "cuda/node/stage_backward.h"

using namespace pfn::cuda;

#define EXPECT(holds) \
  if (!(holds)) return std::printf("line %d: %s\n", __LINE__, #holds), 1

// Every pixel lies in one strip, at the place that strip says.
int strips(int64_t samples, int height, int width) {
  const Strips all = make_strips(samples, height, width);
  std::vector<int> seen(static_cast<size_t>(samples * height * width), 0);
  for (int64_t i = 0; i < all.count + 3; ++i) {
    const Strip strip = strip_at(all, i);
    EXPECT(strip.inside >= (i < all.count ? 1 : 0) && strip.inside <= (i < all.count ? kStrip : 0));
    for (int o = 0; o < strip.inside; ++o) {
      const int64_t pixel = (strip.sample * height + strip.row) * width + strip.column + o;
      EXPECT(pixel == strip.pixel + o && strip.column + o < width);
      ++seen[static_cast<size_t>(pixel)];
    }
  }
  for (int count : seen) EXPECT(count == 1);
  return 0;
}

// Splits follow one another and leave nothing out; so do the tiles of the norms.
int splits(int64_t count, int64_t parts) {
  EXPECT(split_begin(count, 0, parts) == 0 && split_begin(count, parts, parts) == count);
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t size = split_begin(count, i + 1, parts) - split_begin(count, i, parts);
    EXPECT(size >= count / parts && size <= count / parts + 1);
  }
  const NodeSizes sizes{count, 1, 1, 1};
  int64_t next = 0;
  for (int64_t tile = 0; tile < norm_tiles(sizes); ++tile) {
    const TilePixels pixels = tile_pixels(sizes, tile);
    EXPECT(pixels.begin == next && pixels.last > pixels.begin);
    next = pixels.last;
  }
  EXPECT(next == count);
  return 0;
}

// The windows over a place are those that cover it.
int pools(int size, int stride) {
  const int outputs = (size + stride - 1) / stride;
  for (int at = 0; at < size; ++at) {
    const PoolSpan over = pools_over(at, stride, outputs);
    for (int output = 0; output < outputs; ++output) {
      const PoolSpan under = pool_span(output, stride, size);
      EXPECT((under.first <= at && at <= under.last) ==
             (over.first <= output && output <= over.last));
    }
  }
  return 0;
}

// The threads of a tile share out its strips and channels.
template <int kC>
int tile() {
  using Shape = TileShape<kC>;
  std::vector<int> seen(static_cast<size_t>(Shape::kStrips * kC / 4), 0);
  for (int thread = 0; thread < Shape::kThreads; ++thread) {
    EXPECT(Shape::channel_of(thread) % 4 == 0 && Shape::channel_of(thread) < kC);
    ++seen[static_cast<size_t>(Shape::strip_of(thread) * kC / 4 + Shape::channel_of(thread) / 4)];
  }
  for (int count : seen) EXPECT(count == 1);
  std::vector<int> rows(static_cast<size_t>(kDepth * Shape::kStrips), 0);
  for (int thread = 0; thread < Shape::kThreads; ++thread) {
    for_each_pixel_operand<kC>(
        thread, [&](int k, int strip) { ++rows[static_cast<size_t>(k * Shape::kStrips + strip)]; });
  }
  for (int count : rows) EXPECT(count == 1);
  return 0;
}

int main() {
  for (int width = 1; width < 11; ++width) {
    if (strips(3, 2, width) != 0) return 1;
    if (pools(width, 1) != 0 || pools(width, 2) != 0) return 1;
  }
  for (int64_t count : {1, 5, 511, 512, 513, 4096}) {
    if (splits(count, 1) != 0 || splits(count, 7) != 0 || splits(count, 64) != 0) return 1;
  }
  const Strips large = make_strips(int64_t{1} << 20, 64, 64);
  EXPECT(strip_at(large, large.count - 1).pixel == (int64_t{1} << 32) - kStrip);
  return tile<16>() || tile<32>() || tile<64>() ? 1 : 0;
}
"""


def run(csrc: Path, folder: Path) -> subprocess.CompletedProcess:
    """Compile the program against a csrc/ and run it."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler is here to check the launch geometry")
    program = folder / "geometry"
    command = [compiler, "-std=c++17", "-O1", "-DPFN_TWIN", f"-I{csrc}", "-x", "c++", "-"]
    command += [str(csrc / "twin" / "block.cpp"), "-o", str(program)]
    subprocess.run(command, input=PROGRAM, text=True, check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=False)


def test_pixels_are_shared_out(tmp_path):
    done = run(CSRC, tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("header", "right", "wrong"),
    [
        ("strips.h", "(width + kStrip - 1) / kStrip", "width / kStrip + 1"),
        ("maps.h", "(at + 1) / stride", "at / stride"),
        ("norms.h", "end < sizes.pixels() ? end : sizes.pixels()", "end"),
        ("tile.h", "thread % kChannelGroups * 4", "thread % kChannelGroups * 2"),
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
