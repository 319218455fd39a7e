// Gumbel-TopK sampling of rows, its gradient, and the uniform numbers under it.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "math/philox.h"

namespace pfn::cpu {

// Longer rows, and rows of doubles, are walked one at a time and need scratch memory.
constexpr int64_t kMaxLaneColumns = 64;
// Ranks kept in a sorted list; more go through a heap.
constexpr int64_t kMaxSorted = 64;

template <typename T>
struct GumbelTopkArgs {
  const T* logits;   // [rows, columns]
  const T* noise;    // [rows, columns], null to draw it
  T* weights;        // [rows, k]
  int64_t* indices;  // [rows, k]
  T* keys;           // [rows, columns], null when nobody needs them
  int64_t columns;
  int64_t k;
  T inv_tau;
  bool conditional;
  math::PhiloxSeed seed;
};

template <typename T>
struct GumbelTopkBackwardArgs {
  const T* grad_weights;   // [rows, k]
  const T* keys;           // [rows, columns]
  const int64_t* indices;  // [rows, k]
  T* grad;                 // [rows, columns]
  int64_t columns;
  int64_t k;
  T inv_tau;
  bool conditional;
};

// Numbers of scratch that one call of gumbel_topk() needs.
inline int64_t gumbel_topk_scratch(int64_t columns, int64_t k) { return columns + 128 + 3 * k; }

}  // namespace pfn::cpu

// gumbel_topk:          rows first_row to last_row; returns whether every row had k unmasked keys
//                       and no key was NaN or +inf. What it writes for other rows is unspecified.
// gumbel_topk_backward: gradient of the weights with respect to the keys, for the same rows;
//                       returns whether every index was a column.
// philox_uniform:       out[row - first_row][column] for rows first_row to last_row of the counter.
// clang-format off: the declarations are a macro's argument.
PFN_FOR_EACH_ISA(
    template <typename T>
    bool gumbel_topk(const GumbelTopkArgs<T>& args, T* scratch, int64_t first_row,
                     int64_t last_row);

    template <typename T>
    bool gumbel_topk_backward(const GumbelTopkBackwardArgs<T>& args, int64_t first_row,
                              int64_t last_row);

    void philox_uniform(const math::PhiloxSeed& seed, int stream, int64_t columns, float* out,
                        int64_t first_row, int64_t last_row);)
// clang-format on
