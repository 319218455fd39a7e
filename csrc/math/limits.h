// The bounds that the Python checks quote.
#pragma once

#include <cstdint>

namespace pfn::math {

constexpr int kMaxCudaOps = 64;  // candidates one CUDA launch takes in its parameter block
constexpr int64_t kMaxCandidates = 65536;  // columns of a sampled row

}  // namespace pfn::math
