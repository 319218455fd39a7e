// How the kernels of norm_mixed_sum share out a dense tensor, as pure functions: g++ compiles and
// tests what a launch relies on.
#pragma once

#include <cstdint>

#include "cuda/geometry.h"
#include "math/macros.h"

namespace pfn::cuda {

// Values of one channel that lie together, from which on a block has tiles of one channel only.
constexpr int64_t kNormRun = 16;
// Threads side by side on a row; more leave rows of a middling length with too many idle threads.
constexpr int64_t kNormLanes = 64;
// Vectors that a thread of an elementwise kernel takes at once.
constexpr int kNormVectors = 2;
// Vectors that a thread adds up: the bounds, and the blocks below which it takes no more than it
// must. Constants, so that the order of sums is the same on every GPU.
constexpr int64_t kMinNormSteps = 8;
constexpr int64_t kMaxNormSteps = 64;
constexpr int64_t kEnoughNormBlocks = 512;

// Memory is [outer, channels, inner] whatever the layout: a matrix with a row for each sample, cut
// into tiles of columns and pieces of rows; a block takes one tile of one piece. With runs a tile
// holds one channel, and all threads of its block have the same coefficients. Else a column may
// belong to any channel, and a thread keeps its columns.
struct NormTiles {
  int64_t outer, channels, inner;
  int64_t row;                   // elements of a sample
  int64_t tile, tiles_per_span;  // columns of a tile; tiles of a channel, or of a row
  int64_t tiles;                 // in a row
  int64_t piece, pieces;         // samples of a piece
  int width;                     // elements moved at once
  int lanes, rows;               // threads side by side; samples that a block takes at once
  int shift;                     // a thread takes 2^shift vectors of each of its samples
  int steps;                     // vectors of a thread
  bool runs;
};

// Columns that tiles share out among themselves: a channel's, or all.
PFN_HD constexpr int64_t norm_span(const NormTiles& tiles) {
  return tiles.runs ? tiles.inner : tiles.row;
}

PFN_HD constexpr int64_t norm_least(int64_t a, int64_t b) { return a < b ? a : b; }
PFN_HD constexpr int64_t norm_most(int64_t a, int64_t b) { return a < b ? b : a; }

// Whether vectors of `width` elements neither straddle a channel's run nor the end of a row.
PFN_HD constexpr bool norm_takes_width(int64_t channels, int64_t inner, int width) {
  return (inner >= kNormRun ? inner : channels * inner) % width == 0;
}

// Tiles and pieces for threads of about `steps` vectors each. `width` must fit.
PFN_HD constexpr NormTiles norm_tiles(
    int64_t outer, int64_t channels, int64_t inner, int width, int64_t steps) {
  NormTiles tiles{};
  tiles.outer = outer;
  tiles.channels = channels;
  tiles.inner = inner;
  tiles.row = channels * inner;
  tiles.width = width;
  tiles.runs = inner >= kNormRun;
  tiles.lanes = tiles.rows = 1;
  if (outer == 0 || tiles.row == 0) return tiles;
  const int64_t vectors = norm_span(tiles) / width;
  // With few samples a block is wide; columns that a thread keeps are never worth that.
  const int64_t widest = tiles.runs ? norm_most(kThreads / outer, kNormLanes) : kNormLanes;
  const int64_t lanes = divide_up(vectors, divide_up(vectors, widest));
  const int64_t rows = kThreads / lanes;
  const int64_t row_steps = norm_least(divide_up(outer, rows), steps);
  while (tiles.runs && (row_steps << (tiles.shift + 1)) <= steps &&
         (lanes << tiles.shift) < vectors) {
    ++tiles.shift;
  }
  tiles.lanes = static_cast<int>(lanes);
  tiles.rows = static_cast<int>(rows);
  tiles.steps = static_cast<int>(row_steps << tiles.shift);
  tiles.tile = (lanes << tiles.shift) * width;
  tiles.tiles_per_span = divide_up(norm_span(tiles), tiles.tile);
  tiles.tiles = tiles.tiles_per_span * (tiles.runs ? channels : 1);
  tiles.piece = rows * row_steps;
  tiles.pieces = divide_up(outer, tiles.piece);
  return tiles;
}

// Vectors of a thread that adds up: so many that there are still enough blocks.
PFN_HD constexpr int64_t norm_adding_steps(int64_t numel, int width) {
  const int64_t steps = numel / (int64_t{kThreads} * width * kEnoughNormBlocks);
  return norm_least(norm_most(steps, kMinNormSteps), kMaxNormSteps);
}

PFN_HD constexpr int64_t norm_blocks(const NormTiles& tiles) { return tiles.tiles * tiles.pieces; }

// Where a block works: samples from first to before last, columns from begin to before end.
struct NormPlace {
  int64_t piece, tile;
  int64_t first, last;
  int64_t begin, end;
  int64_t channel;  // that of the tile, with runs
};

PFN_HD constexpr NormPlace norm_place(const NormTiles& tiles, int64_t block) {
  NormPlace place{};
  place.piece = block / tiles.tiles;
  place.tile = block % tiles.tiles;
  place.first = place.piece * tiles.piece;
  place.last = norm_least(place.first + tiles.piece, tiles.outer);
  place.channel = place.tile / tiles.tiles_per_span;
  const int64_t span = norm_span(tiles), from = place.channel * span;
  place.begin = from + place.tile % tiles.tiles_per_span * tiles.tile;
  place.end = norm_least(place.begin + tiles.tile, from + span);
  return place;
}

// Where a thread of the block begins. A thread without work has no sample.
struct NormThread {
  int64_t sample, column;
};

PFN_HD constexpr NormThread norm_thread(const NormTiles& tiles,
                                        const NormPlace& place,
                                        int thread) {
  const bool works = thread < tiles.lanes * tiles.rows;
  return {works ? place.first + thread / tiles.lanes : place.last,
          place.begin + int64_t{thread % tiles.lanes} * tiles.width};
}

// First element of a thread's vector number `step`, -1 where it has none. Of two steps without a
// column or sample left, the first comes first: step 0 is there where any is.
PFN_HD constexpr int64_t norm_offset(const NormTiles& tiles,
                                     const NormPlace& place,
                                     const NormThread& thread,
                                     int step) {
  const int64_t sample = thread.sample + int64_t{step >> tiles.shift} * tiles.rows;
  const int across = step & ((1 << tiles.shift) - 1);
  const int64_t column = thread.column + int64_t{across} * tiles.lanes * tiles.width;
  const bool is_there = step < tiles.steps && sample < place.last && column < place.end;
  return is_there ? sample * tiles.row + column : -1;
}

// Partial sums stand in rows of entries, a row for each piece: an entry for each tile of runs, else
// for each column. Those of a channel are neighbours.
PFN_HD constexpr int64_t norm_entries(const NormTiles& tiles) {
  return tiles.runs ? tiles.tiles : tiles.row;
}
PFN_HD constexpr int64_t norm_entries_of_channel(const NormTiles& tiles) {
  return tiles.runs ? tiles.tiles_per_span : tiles.inner;
}
// All entries of a channel, over all pieces, are numbered: where one stands, and what it covers.
PFN_HD constexpr int64_t norm_items(const NormTiles& tiles) {
  return tiles.pieces * norm_entries_of_channel(tiles);
}
PFN_HD constexpr int64_t norm_item(const NormTiles& tiles, int64_t channel, int64_t item) {
  const int64_t each = norm_entries_of_channel(tiles);
  return item / each * norm_entries(tiles) + channel * each + item % each;
}
PFN_HD constexpr int64_t norm_item_values(const NormTiles& tiles, int64_t item) {
  const int64_t each = norm_entries_of_channel(tiles), piece = item / each;
  const int64_t samples = norm_least(tiles.piece, tiles.outer - piece * tiles.piece);
  return samples *
         (tiles.runs ? norm_least(tiles.tile, tiles.inner - item % each * tiles.tile) : 1);
}

// Values of one channel.
PFN_HD constexpr int64_t norm_values(const NormTiles& tiles) { return tiles.outer * tiles.inner; }

// Coefficients stand in tables of one for each channel, or where a thread keeps its columns for
// each column: then it finds those of a vector side by side.
PFN_HD constexpr int64_t norm_repeat(const NormTiles& tiles) {
  return tiles.runs ? 1 : tiles.inner;
}
PFN_HD constexpr int64_t norm_table_size(const NormTiles& tiles) {
  return tiles.channels * norm_repeat(tiles);
}

}  // namespace pfn::cuda
