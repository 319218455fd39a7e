// How norm_mixed_sum walks a dense tensor: its memory is [outer, channels, inner] whatever the
// layout, and everything that is added up is added up in pieces that depend on these sizes alone.
#pragma once

#include <cstdint>

#include "math/accumulate.h"
#include "math/macros.h"

namespace pfn::cpu {

// Columns of a table come in cells of this many: the most lanes of any instruction set.
constexpr int64_t kNormCell = 16;
// Elements walked at once, a multiple of a cell.
constexpr int64_t kNormStrip = 1024;
// Channels whose sums a unit keeps, where a row has one channel.
constexpr int64_t kNormGroup = 64;

// Rows in which vectors are filled. From 16 values a channel on a row is the run of one channel of
// one sample (by_column false: one coefficient for the row). Else it is one pixel with all its
// channels, or several pixels until vectors fit (by_column true: a coefficient for each column).
struct NormGeometry {
  int64_t outer, channels, inner, numel;
  bool by_column;
  int64_t row, rows;              // elements in a row; rows, of which the last may be short
  int64_t strip, strips_per_row;  // a row is walked in strips
  int64_t piece_rows;             // samples, or rows by column, that one partial sum covers
  int64_t pieces;                 // partial sums for each channel
  int64_t group, groups;          // channels in a unit; units in a piece
};

// Part of a piece: some rows, some channels.
struct NormUnit {
  int64_t piece, first, last;           // samples, or rows by column
  int64_t first_channel, last_channel;  // by column: those of the columns
  int64_t begin, count;                 // elements of each row
  int64_t per_channel;                  // values that each channel has here
};

PFN_HD int64_t norm_min(int64_t a, int64_t b) { return a < b ? a : b; }
PFN_HD int64_t norm_clamp(int64_t value, int64_t least, int64_t most) {
  return value < least ? least : value > most ? most : value;
}
PFN_HD int64_t norm_blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

// Coefficients in a table of one for each channel.
PFN_HD int64_t norm_table_size(const NormGeometry& geo) {
  return geo.by_column ? norm_blocks(geo.row, kNormCell) * kNormCell : geo.channels;
}

PFN_HD int64_t norm_gcd(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

PFN_HD NormGeometry norm_geometry(int64_t outer, int64_t channels, int64_t inner) {
  NormGeometry geo{};
  geo.outer = outer;
  geo.channels = channels;
  geo.inner = inner;
  geo.numel = outer * channels * inner;
  geo.by_column = inner < 16;
  if (geo.numel == 0) return geo;
  if (geo.by_column) {
    const int64_t pixel = channels * inner;
    int64_t pixels = kNormCell / norm_gcd(pixel, kNormCell);
    pixels *= norm_blocks(4 * kNormCell, pixels * pixel);
    // Long rows are walked with a partial vector at their end instead.
    if (pixels * pixel > 512) pixels = 1;
    geo.row = pixels * pixel;
    geo.rows = norm_blocks(geo.numel, geo.row);
    // Strips hold whole vectors and whole channels.
    const int64_t whole = inner * (kNormCell / norm_gcd(inner, kNormCell));
    geo.strip = geo.row <= kNormStrip ? geo.row : kNormStrip / whole * whole;
    geo.strips_per_row = norm_blocks(geo.row, geo.strip);
    geo.piece_rows = norm_clamp(16384 / geo.strip, 64, 256);
    geo.pieces = norm_blocks(geo.rows, geo.piece_rows);
    geo.group = geo.strips_per_row == 1 ? channels : geo.strip / inner;
    geo.groups = geo.strips_per_row;
  } else {
    geo.row = inner;
    geo.rows = outer * channels;
    geo.strip = norm_min(inner, kNormStrip);
    geo.strips_per_row = norm_blocks(inner, geo.strip);
    geo.piece_rows = norm_clamp(1024 / geo.strip, 1, outer);
    geo.pieces = norm_blocks(outer, geo.piece_rows) * geo.strips_per_row;
    const int64_t most = norm_min(channels, kNormGroup);
    // What a unit reads of one sample lies together, and is to be worth a jump.
    const int64_t together = norm_blocks(2048, geo.strip);
    geo.group = norm_clamp(16384 / (geo.piece_rows * geo.strip), norm_min(together, most), most);
    geo.groups = norm_blocks(channels, geo.group);
  }
  return geo;
}

PFN_HD NormUnit norm_unit(const NormGeometry& geo, int64_t index) {
  NormUnit unit{};
  unit.piece = index / geo.groups;
  const int64_t group = index % geo.groups;
  unit.first_channel = group * geo.group;
  unit.last_channel = norm_min(unit.first_channel + geo.group, geo.channels);
  const int64_t strip = geo.by_column ? group : unit.piece % geo.strips_per_row;
  unit.begin = strip * geo.strip;
  unit.count = norm_min(geo.strip, geo.row - unit.begin);
  if (geo.by_column) {
    unit.first = unit.piece * geo.piece_rows;
    unit.last = norm_min(unit.first + geo.piece_rows, geo.rows);
    const int64_t end = norm_min(unit.last * geo.row, geo.numel);
    unit.per_channel = (end - unit.first * geo.row) / geo.channels;
  } else {
    unit.first = unit.piece / geo.strips_per_row * geo.piece_rows;
    unit.last = norm_min(unit.first + geo.piece_rows, geo.outer);
    unit.per_channel = (unit.last - unit.first) * unit.count;
  }
  return unit;
}

// Where strip `index` begins; the end of the tensor for the one behind the last.
PFN_HD int64_t norm_strip_offset(const NormGeometry& geo, int64_t index) {
  const int64_t row = index / geo.strips_per_row;
  if (row >= geo.rows) return geo.numel;
  return row * geo.row + index % geo.strips_per_row * geo.strip;
}

// Writes per_channel[c], one of `width` coefficients (number `index`), where the loops look for it:
// table[c][width], or by column table[cell][width][kNormCell].
template <typename Acc>
PFN_HD void norm_fill_table(const NormGeometry& geo,
                            const Acc* per_channel,  // [channels]
                            int64_t index,
                            int64_t width,
                            Acc* table) {
  if (!geo.by_column) {
    for (int64_t c = 0; c < geo.channels; ++c) table[c * width + index] = per_channel[c];
    return;
  }
  int64_t column = 0;
  while (column < geo.row) {
    for (int64_t c = 0; c < geo.channels; ++c) {
      for (int64_t i = 0; i < geo.inner; ++i, ++column) {
        const int64_t cell = column / kNormCell * width + index;
        table[cell * kNormCell + column % kNormCell] = per_channel[c];
      }
    }
  }
}

// Mean and sum of squared distances from it of one channel, in float64 throughout: for channels
// that hold NaN or infinity, or whose squares are too large for the type they are accumulated in.
template <typename X>
PFN_HD void norm_exact_channel(
    const NormGeometry& geo, const X* x, int64_t channel, double* mean, double* squares) {
  double sum = 0.0;
  for (int64_t o = 0; o < geo.outer; ++o) {
    const X* run = x + (o * geo.channels + channel) * geo.inner;
    for (int64_t i = 0; i < geo.inner; ++i) sum += static_cast<double>(math::widen(run[i]));
  }
  *mean = sum / static_cast<double>((geo.outer * geo.inner));
  sum = 0.0;
  for (int64_t o = 0; o < geo.outer; ++o) {
    const X* run = x + (o * geo.channels + channel) * geo.inner;
    for (int64_t i = 0; i < geo.inner; ++i) {
      const double distance = static_cast<double>(math::widen(run[i])) - *mean;
      sum += distance * distance;
    }
  }
  *squares = sum;
}

}  // namespace pfn::cpu
