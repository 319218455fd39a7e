// How the kernels of a fused node cut a batch of maps: rows in strips of four pixels, which one
// thread takes together, and strips in tiles. Pure functions, tested by g++.
#pragma once

#include <cstdint>

#include "cuda/geometry.h"
#include "math/macros.h"

namespace pfn::cuda {

constexpr int kStrip = 4;

// The strips of `samples` maps of height x width.
struct Strips {
  int height;
  int width;
  int per_row;
  int64_t count;
};

PFN_HD Strips make_strips(int64_t samples, int height, int width) {
  const int per_row = (width + kStrip - 1) / kStrip;
  return {height, width, per_row, samples * height * per_row};
}

// One strip: where it begins, and how many of its pixels are inside of the map; none behind the
// last.
struct Strip {
  int64_t sample;
  int row;
  int column;
  int64_t pixel;  // of the batch
  int inside;
};

PFN_HD Strip strip_at(const Strips& strips, int64_t index) {
  if (index >= strips.count) return {0, 0, 0, 0, 0};
  const int64_t row = quotient(index, strips.per_row), sample = quotient(row, strips.height);
  const int column = static_cast<int>(index - row * strips.per_row) * kStrip;
  const int left = strips.width - column;
  return {sample, static_cast<int>(row - sample * strips.height), column,
          row * strips.width + column, left < kStrip ? left : kStrip};
}

}  // namespace pfn::cuda
