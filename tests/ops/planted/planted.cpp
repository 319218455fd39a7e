#include "cpu/planted.h"

#include <cstdint>

#include "cpu/gumbel_topk_lanes.h"
#include "cpu/lanes.h"

namespace pfn::cpu::PFN_ISA {

__attribute__((noinline)) void planted(const float* x, float* out, int64_t count, int64_t mistake) {
  constexpr int64_t kStep = kLanes<float>;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    store(out + i, load(x + i));
  }
  const int64_t left = count - i;
  FloatLanes rest = load_some(x + i, left);
  switch (mistake) {
    case 1:  // a whole vector where less is left
      rest = load(x + i);
      break;
    case 2:  // one lane too many, by a masked instruction where there is one
      rest = load_some(x + i, left + 1, FloatLanes{});
      break;
    case 3:  // one lane too many, through memory
      rest = load_some(x + i, left + 1);
      break;
    case 4:
      store(out + i, rest);
      break;
    case 5:
      store_some(out + i, left + 1, rest);
      break;
    case 6:
      store_some(out + i, rest, left + 1);
      break;
    case 7:
      stream(out + i, rest);
      break;
    case 8:
      out[0] = static_cast<float>(1 << count);
      break;
    case 9:
      rest += __builtin_convertvector((IndexLanes{} + 0x7fffffff) + static_cast<int32_t>(count),
                                      FloatLanes);
      break;
    case 10:
      rest += *reinterpret_cast<const volatile float*>(reinterpret_cast<const char*>(x) + 1);
      break;
    default:
      break;
  }
  store_some(out + i, rest, left);
}

}  // namespace pfn::cpu::PFN_ISA
