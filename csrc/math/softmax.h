// Relaxed weights of the kept candidates and their gradient (docs/kernels.md, Gumbel-TopK). Every
// exponent is at most zero, so nothing overflows at any temperature.
#pragma once

#include <cstdint>

#include "math/macros.h"

namespace pfn::math {

// 1 / tau with tau kept where both it and its inverse are usable numbers of type T.
PFN_HD float inverse_tau(double tau, float) {
  const double bounded = tau < 0x1p-126 ? 0x1p-126 : tau > 0x1p126 ? 0x1p126 : tau;
  return static_cast<float>(1.0 / bounded);
}
PFN_HD double inverse_tau(double tau, double) {
  const double bounded = tau < 0x1p-1022 ? 0x1p-1022 : tau > 0x1p1022 ? 0x1p1022 : tau;
  return 1.0 / bounded;
}

// exp((key - reference) / tau) of one candidate for the sum that relaxed_weights() needs: of every
// candidate (shared) or of those that were not kept (conditional). `last` is the k-th best key,
// `last_column` its column.
template <typename L>
PFN_HD typename L::Value relaxed_term(typename L::Value key,
                                      typename L::Index column,
                                      typename L::Value reference,
                                      typename L::Value last,
                                      typename L::Index last_column,
                                      typename L::Number inv_tau,
                                      bool conditional) {
  const auto term = L::exp((key - reference) * inv_tau);
  if (!conditional) {
    return term;
  }
  const auto kept = (key > last) | ((key == last) & (column <= last_column));
  return kept ? typename L::Value{} : term;
}

// Weights from the kept keys and `sum`, the sum of relaxed_term() over the row with the reference
// best[0] (shared) or best[k - 1] (conditional). O(k).
template <typename L>
PFN_HD void relaxed_weights(const typename L::Value* best,  // [k]
                            typename L::Value sum,
                            int64_t k,
                            typename L::Number inv_tau,
                            bool conditional,
                            typename L::Value* weights  // [k]
) {
  if (!conditional) {
    for (int64_t r = 0; r < k; ++r) {
      weights[r] = L::exp((best[r] - best[0]) * inv_tau) / sum;
    }
    return;
  }
  // total_r = sum over what rank r chooses from of exp((key - best[r]) / tau), from the last rank up.
  auto total = 1.0f + sum;
  for (int64_t r = k - 1; r > 0; --r) {
    weights[r] = 1.0f / total;
    total = 1.0f + L::exp((best[r] - best[r - 1]) * inv_tau) * total;
  }
  weights[0] = 1.0f / total;
}

}  // namespace pfn::math
