// Weighted sum of candidate outputs, forward and backward, over a range of elements.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "math/accumulate.h"

// Elements per block of the backward: partial dot products belong to a block, whichever thread
// walks it, so sums do not depend on the number of threads.
#define PFN_MIXED_SUM_BLOCK 4096

// mixed_sum:          y[i] = sum_k weights[k] * xs[k][i] for begin <= i < end.
// mixed_sum_backward: for each block b and candidate k, grad_xs[k][i] = weights[k] * grad[i] where
//                     grad_xs[k] is not null, and dots[b * num_ops + k] = <grad, xs[k]> over the
//                     block where dots is not null; xs are not read where dots is null. With
//                     `streams`, gradients are stored past the caches.
PFN_FOR_EACH_ISA(
    template <typename X, typename Y>
    void mixed_sum(const X* const* xs,             // [num_ops] pointers to [numel]
                   const math::acc_t<X>* weights,  // [num_ops]
                   Y* y,                           // [numel]
                   int64_t num_ops,
                   int64_t begin,
                   int64_t end);

    template <typename X, typename Y>
    void mixed_sum_backward(const Y* grad,                  // [numel]
                            const X* const* xs,             // [num_ops] pointers to [numel]
                            const math::acc_t<X>* weights,  // [num_ops]
                            X* const* grad_xs,              // [num_ops] pointers to [numel] or null
                            double* dots,                   // [num_blocks, num_ops]
                            int64_t num_ops,
                            int64_t numel,
                            int64_t first_block,
                            int64_t last_block,
                            bool streams);)
