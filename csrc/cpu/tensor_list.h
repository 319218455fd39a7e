// Passes over lists of tensors and inner products of them, over a range of blocks.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "math/accumulate.h"
#include "math/tensor_list.h"

// The values of all tensors, one list after the other, are cut into blocks of so many: partial sums
// belong to a block, whichever thread walks it.
#define PFN_TENSOR_LIST_BLOCK 4096

// tensor_list_pass: Pass::apply on every value of the blocks.
// tensor_list_dot:  partial[b] = sum of at[0][i] * at[1][i] over block b, in float64.
PFN_FOR_EACH_ISA(template <typename Pass, typename T>
                 void tensor_list_pass(Pass,
                                       math::ValueType<T>,
                                       const math::Segment* segments,  // [count]
                                       const int64_t* starts,          // [count] values before each
                                       int64_t count,
                                       math::acc_t<T> factor,
                                       int64_t first_block,
                                       int64_t last_block);

                 template <typename T>
                 void tensor_list_dot(math::ValueType<T>,
                                      const math::Segment* segments,  // [count]
                                      const int64_t* starts,          // [count] values before each
                                      int64_t count,
                                      double* partial,  // [num_blocks]
                                      int64_t first_block,
                                      int64_t last_block);)
