// Compiler switches shared by every kernel file. Torch-free; g++, clang and nvcc read the same
// lines.
#pragma once

#include <cstddef>
#include <cstdint>

// Functions of math/ are internal to each translation unit on purpose: cpu/ files are compiled once
// per instruction set, and a shared inline symbol could otherwise be taken from the AVX-512 copy
// on a processor that has none.
#if defined(__CUDACC__)
#define PFN_HD static __host__ __device__ __forceinline__
#else
#define PFN_HD static inline __attribute__((always_inline))
#endif

// Sanitizers do not see what masked and streaming intrinsics touch: those say it by these.
#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __asan_loadN(const void* from, std::size_t bytes);
void __asan_storeN(void* to, std::size_t bytes);
}
#define PFN_WILL_READ(from, bytes) __asan_loadN(from, static_cast<std::size_t>(bytes))
#define PFN_WILL_WRITE(to, bytes) __asan_storeN(to, static_cast<std::size_t>(bytes))
#else
#define PFN_WILL_READ(from, bytes) static_cast<void>(0)
#define PFN_WILL_WRITE(to, bytes) static_cast<void>(0)
#endif

// cpu/ files are compiled with PFN_ISA = plain, avx2 or avx512 and the fitting machine flags.
#ifndef PFN_ISA
#define PFN_ISA plain
#endif

#if defined(__AVX512F__)
#define PFN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define PFN_VECTOR_BYTES 32
#else
#define PFN_VECTOR_BYTES 16
#endif
