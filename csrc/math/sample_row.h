// One row sampled in a single pass with nothing kept but the k best keys and a running sum: what a
// CUDA thread does with a short row.
#pragma once

#include <cstdint>

#include "math/gumbel.h"
#include "math/macros.h"
#include "math/philox.h"
#include "math/softmax.h"
#include "math/topk.h"

namespace pfn::math {

// Multiplies a sum of exp((key - from) / tau) so that it holds exp((key - to) / tau), to >= from.
template <typename L>
PFN_HD typename L::Value moved_sum(typename L::Value sum,
                                   typename L::Value from,
                                   typename L::Value to,
                                   typename L::Number inv_tau) {
  // An empty sum may stand on -inf.
  return from == to || sum == 0 ? sum : sum * L::exp((from - to) * inv_tau);
}

// Returns whether the row had kTop unmasked keys and none NaN or +inf; writes weights and indices
// only then, and keys always.
template <typename T, int kTop>
PFN_HD bool sample_row(const T* logits,  // [columns]
                       const T* noise,   // [columns], null to draw it
                       int64_t columns,
                       const PhiloxSeed& seed,
                       uint32_t row,
                       T inv_tau,
                       bool conditional,
                       T* weights,        // [kTop]
                       int64_t* indices,  // [kTop]
                       T* keys            // [columns], null when nobody needs them
) {
  using L = Scalar<T>;
  const T masked = -static_cast<T>(HUGE_VALF);
  T best[kTop];
  int32_t index[kTop];
  for (int r = 0; r < kTop; ++r) {
    best[r] = masked;
    index[r] = -1;
  }
  T sum{};
  bool usable = true;
  uint32_t words[4] = {};
  for (int64_t j = 0; j < columns; ++j) {
    T key = logits[j];
    if (noise != nullptr) {
      key += noise[j];
    } else {
      if (j % 4 == 0) {
        philox_words(seed, philox_block(j / 4, 0), row, words);
      }
      const uint32_t word = j % 4 == 0   ? words[0]
                            : j % 4 == 1 ? words[1]
                            : j % 4 == 2 ? words[2]
                                         : words[3];
      key += gumbel<L>(word);
    }
    if (keys != nullptr) {
      keys[j] = key;
    }
    usable &= key < -masked;
    // The sum stands on the best key (all candidates), or on the last one (those not kept).
    const T before = conditional ? best[kTop - 1] : best[0];
    const T left = insert_sorted<L>(key, static_cast<int32_t>(j), kTop, best, index);
    const T reference = conditional ? best[kTop - 1] : best[0];
    const T added = conditional ? left : key;
    sum = moved_sum<L>(sum, before, reference, inv_tau);
    sum += added > masked ? L::exp((added - reference) * inv_tau) : T{};
  }
  if (!usable || !(best[kTop - 1] > masked)) {
    return false;
  }
  relaxed_weights<L>(best, sum, kTop, inv_tau, conditional, weights);
  for (int r = 0; r < kTop; ++r) {
    indices[r] = index[r];
  }
  return true;
}

}  // namespace pfn::math
