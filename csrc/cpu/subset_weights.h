// Weights of the relaxed subset at the kept candidates of rows, and their gradient.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "math/subset.h"

namespace pfn::cpu {

template <typename T>
struct SubsetArgs {
  const T* keys;           // [rows, columns]
  const int64_t* indices;  // [rows, k]
  int64_t columns;
  int64_t k;
  T inv_tau;
};

}  // namespace pfn::cpu

// Both take rows first_row to last_row, with scratch of [columns] and ranks of [k], and return
// whether every index was a column.
// clang-format off: the declarations are a macro's argument.
PFN_FOR_EACH_ISA(
    template <typename T>
    bool subset_weights(const SubsetArgs<T>& args, T* weights /* [rows, k] */, T* scratch,
                        math::SubsetRank<T>* ranks, int64_t first_row, int64_t last_row);

    template <typename T>
    bool subset_weights_backward(const SubsetArgs<T>& args,
                                 const T* grad_weights /* [rows, k] */,
                                 T* grad /* [rows, columns] */, T* scratch,
                                 math::SubsetRank<T>* ranks, int64_t first_row, int64_t last_row);)
// clang-format on
