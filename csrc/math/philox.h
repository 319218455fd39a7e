// Philox4x32 counter-based random bits (Salmon, Moraes, Dror, Shaw, SC 2011) and the counter layout
// of this package. Any word is made from its seed, offset, stream, row and column alone.
#pragma once

#include <cstdint>

#include "math/macros.h"

namespace pfn::math {

// The seed tensor, split into the words of key and counter.
struct PhiloxSeed {
  uint32_t key[2];     // seed, low word first
  uint32_t offset[2];  // call counter, low word first
};

PFN_HD PhiloxSeed philox_seed(int64_t seed, int64_t offset) {
  const uint64_t s = static_cast<uint64_t>(seed);
  const uint64_t o = static_cast<uint64_t>(offset);
  return PhiloxSeed{{static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32)},
                    {static_cast<uint32_t>(o), static_cast<uint32_t>(o >> 32)}};
}

// Columns 4 b to 4 b + 3 of a row share the counter whose first word is this.
PFN_HD uint32_t philox_block(int64_t block, int stream) {
  return static_cast<uint32_t>(block) | (static_cast<uint32_t>(stream) << 24);
}

// One 32-bit word; vectors of words bring their own multiply().
struct ScalarWords {
  using Word = uint32_t;
  PFN_HD void multiply(uint32_t factor, uint32_t x, uint32_t* high, uint32_t* low) {
    const uint64_t product = static_cast<uint64_t>(factor) * x;
    *high = static_cast<uint32_t>(product >> 32);
    *low = static_cast<uint32_t>(product);
  }
};

// Replaces each counter by its encryption under the key. Several go round by round together, since
// the products of one wait for each other.
template <typename Words, int kCounters, int kRounds = 10>
PFN_HD void philox4x32_together(typename Words::Word (*counters)[4],  // [kCounters][4]
                                uint32_t k0,
                                uint32_t k1) {
  using Word = typename Words::Word;
  for (int round = 0; round < kRounds; ++round) {
    for (int n = 0; n < kCounters; ++n) {
      Word* c = counters[n];
      Word high0, low0, high2, low2;
      Words::multiply(0xD2511F53u, c[0], &high0, &low0);
      Words::multiply(0xCD9E8D57u, c[2], &high2, &low2);
      c[0] = high2 ^ c[1] ^ k0;
      c[1] = low2;
      c[2] = high0 ^ c[3] ^ k1;
      c[3] = low0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// One counter of four 32-bit words.
template <int kRounds = 10>
PFN_HD void philox4x32(uint32_t* counter,  // [4]
                       uint32_t k0,
                       uint32_t k1) {
  uint32_t words[1][4] = {{counter[0], counter[1], counter[2], counter[3]}};
  philox4x32_together<ScalarWords, 1, kRounds>(words, k0, k1);
  for (int i = 0; i < 4; ++i) {
    counter[i] = words[0][i];
  }
}

// The four words of columns 4 b to 4 b + 3 of one row.
PFN_HD void philox_words(const PhiloxSeed& seed, uint32_t block, uint32_t row, uint32_t* words) {
  words[0] = block;
  words[1] = row;
  words[2] = seed.offset[0];
  words[3] = seed.offset[1];
  philox4x32(words, seed.key[0], seed.key[1]);
}

}  // namespace pfn::math
