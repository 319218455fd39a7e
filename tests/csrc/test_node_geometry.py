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

// Counts the places of a block of `rows` x `columns` that are taken, from 0 on; each once.
struct Places {
  int rows, columns;
  std::vector<int> seen = std::vector<int>(static_cast<size_t>(rows * columns), 0);

  bool take(int row, int column) {
    if (row < 0 || row >= rows || column < 0 || column >= columns) return false;
    return ++seen[static_cast<size_t>(row * columns + column)] == 1;
  }
  bool is_full() const {
    for (int count : seen) {
      if (count != 1) return false;
    }
    return true;
  }
};

// The threads of a tile share out its pixels and channels.
template <int kC, bool kTensor>
int tile() {
  using Shape = TileShape<kC, kTensor>;
  Places sums{Shape::kPixels, kC}, operands{kDepth, Shape::kStrips};
  for (int thread = 0; thread < Shape::kThreads; ++thread) {
    for (int i = 0; i < 16; ++i) {
      EXPECT(sums.take(Shape::pixel_of(thread, i / 4), Shape::channel_of(thread, i % 4)));
    }
    bool are_new = true;
    for_each_pixel_operand<Shape>(
        thread, [&](int k, int strip) { are_new = are_new && operands.take(k, strip); });
    EXPECT(are_new);
  }
  EXPECT(sums.is_full() && operands.is_full());
  return 0;
}

// So do those of each group with the numbers of a matrix, and the groups with the pixels.
template <int kC, bool kTensor>
int outer() {
  using Shape = OuterShape<kC, kTensor>;
  std::vector<Places> sums(Shape::kGroups, Places{kC, kDepth});
  for (int thread = 0; thread < Shape::kThreads; ++thread) {
    EXPECT(Shape::group_of(thread) < Shape::kGroups);
    Places& mine = sums[static_cast<size_t>(Shape::group_of(thread))];
    for (int i = 0; i < Shape::kRows * 4; ++i) {
      EXPECT(mine.take(Shape::channel_of(thread, i / 4), Shape::inner_of(thread, i % 4)));
    }
  }
  for (const Places& group : sums) EXPECT(group.is_full());
  EXPECT(Shape::kPixels % (Shape::kGroups * Shape::kPixelsAtOnce) == 0);
  return 0;
}

template <int kC>
int shapes() {
  return tile<kC, false>() || tile<kC, true>() || outer<kC, false>() || outer<kC, true>();
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
  return shapes<16>() || shapes<32>() || shapes<64>();
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
        ("tile.h", "thread % (kC / 4) * 4 + column", "thread % (kC / 4) * 2 + column"),
        ("tile.h", "% (kC / 16) * 16", "% (kC / 16) * 8"),
        ("outer.h", "place / kWarpSize * 16", "place / kWarpSize * 8"),
        ("tensor_core.h", "return lane / 4 + i * 8", "return lane / 4 + i * 4"),
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
