// Products of a warp on tensor cores: 16 x 8 numbers of float32, of factors rounded to TF32. Which
// numbers of the factors and of the product a lane holds: PTX ISA, "Matrix fragments for
// mma.m16n8k8" with .tf32.
#pragma once

#include "cuda/block.h"
#include "math/tf32.h"

namespace pfn::cuda {

// Terms of the sum in one product.
constexpr int kTensorSteps = 8;

// Row and step of number `i` of four of the left factor [16, 8].
PFN_HD constexpr int left_row(int lane, int i) { return lane / 4 + i % 2 * 8; }
PFN_HD constexpr int left_step(int lane, int i) { return lane % 4 + i / 2 * 4; }
// Step and column of number `i` of two of the right factor [8, 8].
PFN_HD constexpr int right_step(int lane, int i) { return lane % 4 + i * 4; }
PFN_HD constexpr int right_column(int lane) { return lane / 4; }
// Row of number 2 i of four of the product [16, 8], and column of number `i` of each such pair.
PFN_HD constexpr int product_row(int lane, int i) { return lane / 4 + i * 8; }
PFN_HD constexpr int product_column(int lane, int i) { return lane % 4 * 2 + i; }

// sum += left * right by shuffles, for code that was made for GPUs without such tensor cores. Every
// lane of the warp takes part.
PFN_DEVICE void multiply_by_shuffles(const Block& block,
                                     const float (&left)[4],
                                     const float (&right)[2],
                                     float (&sum)[4]) {
  const int lane = block.thread() % kWarpSize;
#pragma unroll
  for (int k = 0; k < kTensorSteps; ++k) {
    const int from = lane / 4 * 4 + k % 4;
    const float above = block.shuffle(left[k / 4 * 2], from);
    const float below = block.shuffle(left[k / 4 * 2 + 1], from);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float by = block.shuffle(right[k / 4], product_column(lane, j) * 4 + k % 4);
      sum[j] += above * by;
      sum[2 + j] += below * by;
    }
  }
}

// The same on tensor cores.
PFN_DEVICE void multiply_tensors(const Block& block,
                                 const float (&left)[4],
                                 const float (&right)[2],
                                 float (&sum)[4]) {
#if defined(PFN_TWIN)
  block.multiply_tensors(left, right, sum);
#elif __CUDA_ARCH__ >= 800
  uint32_t a[4], b[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = math::bits_of(left[i]);
#pragma unroll
  for (int i = 0; i < 2; ++i) b[i] = math::bits_of(right[i]);
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  multiply_by_shuffles(block, left, right, sum);
#endif
}

}  // namespace pfn::cuda
