// Weighted sum of batch-normalised candidates over units and strips of norm_geometry.h.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/norm_geometry.h"
#include "math/accumulate.h"

// Candidates that share a table of coefficients and are summed in registers at once.
#define PFN_NORM_GROUP 8
// Coefficients of a candidate's gradient: scale, slope, mean, shift.
#define PFN_NORM_SCATTER 4

// norm_statistics: mean and sum of squared distances from it, for each piece and channel.
// norm_sum:        y = bias + sum_k scale_k * (xs[k] - mean_k); tables[g] holds the pairs of scale
//                  and mean of the g-th group of candidates.
// norm_dots:       dots[k] = sum of grad * (xs[k] - means[k]) for each piece and channel where
//                  dots[k] is not null; dots[num_ops] = sum of grad likewise.
// norm_scatter:    grad_xs[k] = scale * (grad + slope * (xs[k] - mean) + shift) where grad_xs[k] is
//                  not null; where xs[k] is null, scale * grad: the table holds scale alone.
// Tables are those of norm_fill_table, bias and means such with one coefficient.
PFN_FOR_EACH_ISA(
    template <typename X>
    void norm_statistics(const NormGeometry& geo,
                         const X* const* xs,      // [num_ops] pointers to [numel]
                         double* const* means,    // [num_ops] pointers to [pieces, channels]
                         double* const* squares,  // the same
                         int64_t num_ops,
                         int64_t first_unit,
                         int64_t last_unit);

    template <typename X, typename Y>
    void norm_sum(const NormGeometry& geo,
                  const X* const* xs,                   // [num_ops] pointers to [numel]
                  const math::acc_t<X>* const* tables,  // one for each group of candidates
                  const math::acc_t<X>* bias,
                  Y* y,  // [numel]
                  int64_t num_ops,
                  int64_t first_strip,
                  int64_t last_strip);

    template <typename X, typename Y>
    void norm_dots(const NormGeometry& geo,
                   const Y* grad,                       // [numel]
                   const X* const* xs,                  // [num_ops] pointers to [numel]
                   const math::acc_t<X>* const* means,  // [num_ops]
                   double* const* dots,                 // [num_ops + 1], to [pieces, channels]
                   int64_t num_ops,
                   int64_t first_unit,
                   int64_t last_unit);

    template <typename X, typename Y>
    void norm_scatter(const NormGeometry& geo,
                      const Y* grad,                        // [numel]
                      const X* const* xs,                   // [num_ops] pointers to [numel] or null
                      const math::acc_t<X>* const* tables,  // [num_ops]
                      X* const* grad_xs,                    // [num_ops] pointers to [numel] or null
                      int64_t num_ops,
                      int64_t first_strip,
                      int64_t last_strip,
                      bool streams);)
