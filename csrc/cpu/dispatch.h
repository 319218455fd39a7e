// Chooses, once per process, the widest instruction set that both the build and the processor have.
#pragma once

#include <atomic>

namespace pfn::cpu {

enum class Isa : int { plain = 0, avx2 = 1, avx512 = 2 };

inline Isa detect_isa() {
#if defined(PFN_X86_64)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return Isa::avx2;
  }
#endif
  return Isa::plain;
}

// The instruction set in use; tests lower it to run every path on one machine.
inline std::atomic<int>& isa_in_use() {
  static std::atomic<int> value{static_cast<int>(detect_isa())};
  return value;
}

inline Isa isa() { return static_cast<Isa>(isa_in_use().load(std::memory_order_relaxed)); }

}  // namespace pfn::cpu

// PFN_CPU_CALL(mixed_sum<float>, args...) calls pfn::cpu::<isa>::mixed_sum<float>(args...).
#if defined(PFN_X86_64)
#define PFN_CPU_CALL(function, ...)                                                         \
  (::pfn::cpu::isa() == ::pfn::cpu::Isa::avx512 ? ::pfn::cpu::avx512::function(__VA_ARGS__) \
   : ::pfn::cpu::isa() == ::pfn::cpu::Isa::avx2 ? ::pfn::cpu::avx2::function(__VA_ARGS__)   \
                                                : ::pfn::cpu::plain::function(__VA_ARGS__))
// PFN_FOR_EACH_ISA(DECLARATIONS) writes the declarations once per instruction set.
#define PFN_FOR_EACH_ISA(...)  \
  namespace pfn::cpu::plain {  \
  __VA_ARGS__                  \
  }                            \
  namespace pfn::cpu::avx2 {   \
  __VA_ARGS__                  \
  }                            \
  namespace pfn::cpu::avx512 { \
  __VA_ARGS__                  \
  }
#else
#define PFN_CPU_CALL(function, ...) (::pfn::cpu::plain::function(__VA_ARGS__))
#define PFN_FOR_EACH_ISA(...) \
  namespace pfn::cpu::plain { \
  __VA_ARGS__                 \
  }
#endif
