// Formulas of one row that the CPU twins and the CUDA kernels must both follow.
#pragma once

#include "math/scalar.h"

namespace overlap_recompute {

// NOTE [ order of a row sum ]
// Element i goes to partial sum i % kPartialSums, in rising order of i. Then the partial sums are folded: 4 neighbours
// as (a + b) + (c + d), giving one sum per thread of a block of 256; 32 threads by halving (16, 8, 4, 2, 1); and the
// 8 warps by halving. A CUDA block does this with shuffles, the CPU with loops, and both get the same bits.
constexpr int kSumThreads = 256;
constexpr int kSumsPerThread = 4;
constexpr int kPartialSums = kSumThreads * kSumsPerThread;

// 1 / standard deviation, from the mean of the squares.
ORC_INLINE float reciprocal_deviation(float mean_of_squares, float epsilon) {
#if defined(__CUDA_ARCH__)
  return 1.0f / __fsqrt_rn(mean_of_squares + epsilon);
#else
  return 1.0f / __builtin_sqrtf(mean_of_squares + epsilon);
#endif
}

// Where weight and bias are both given, the last product and sum are fused: so do torch's CPU and CUDA kernels.
ORC_INLINE float affine(float normalized, bool has_weight, float weight, bool has_bias, float bias) {
  if (has_weight && has_bias) return fused_multiply_add(normalized, weight, bias);
  if (has_weight) return normalized * weight;
  return has_bias ? normalized + bias : normalized;
}

}  // namespace overlap_recompute
