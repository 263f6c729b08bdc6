// Scalar formulas shared by the CPU twins and the CUDA kernels.
//
// NOTE [ one formula, two devices ]
// Both sides compute the same bits, because
//   1. every product-plus-sum that is fused is written as `fused_multiply_add`, and the compilers may fuse no other
//      (g++ -ffp-contract=off, nvcc -fmad=false);
//   2. additions, products, divisions and square roots are the correctly rounded ones of IEEE 754;
//   3. exponential functions are polynomials of this file, never those of libm or libdevice, which differ;
//   4. sums over a row follow one fixed order (kernels/row_sum.h).
// The payload of a NaN is not part of the contract: a NaN stays a NaN.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define ORC_INLINE __host__ __device__ __forceinline__
#else
// `static`: each instruction set compiles its own copy of this file, and the linker must not merge them.
#define ORC_INLINE static inline __attribute__((always_inline))
#endif

namespace overlap_recompute {

ORC_INLINE float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

ORC_INLINE std::uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

ORC_INLINE float float_of(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// e^x, off by less than 1.1 units in the last place; 0 below -104, infinity above 89, subnormal results rounded once.
// e^x = 2^n (1 + r + r^2 q(r)) with |r| <= ln(2)/2 and q a minimax fit (Remez exchange, error 2^-28).
ORC_INLINE float exponential(float x) {
  constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low mantissa bits
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const float shifted = fused_multiply_add(x, 1.44269504f, kRoundToInteger);
  const float n = shifted - kRoundToInteger;
  float r = fused_multiply_add(n, -0.693145752f, x);  // ln(2) in two parts, the first short enough for n times it to be exact
  r = fused_multiply_add(n, -1.42860677e-6f, r);
  float q = fused_multiply_add(0.00138141745f, r, 0.00836892172f);
  q = fused_multiply_add(q, r, 0.0416684080f);
  q = fused_multiply_add(q, r, 0.166665189f);
  q = fused_multiply_add(q, r, 0.499999933f);
  const float mantissa = fused_multiply_add(r * r, q, r) + 1.0f;
  // Two steps, so that neither factor leaves the range of normal numbers.
  const std::int32_t exponent = static_cast<std::int32_t>(bits_of(shifted) - bits_of(kRoundToInteger));
  const std::int32_t half = exponent >> 1;
  const std::uint32_t first = (static_cast<std::uint32_t>(half) + 127u) << 23;
  const std::uint32_t second = (static_cast<std::uint32_t>(exponent) - static_cast<std::uint32_t>(half) + 127u) << 23;
  return mantissa * float_of(first) * float_of(second);
}

// x * sigmoid(x).
ORC_INLINE float silu(float x) { return x / (1.0f + exponential(-x)); }

// GELU by the tanh approximation, with the constants of Megatron-Core's fused_bias_gelu.py. Written as
// x * sigmoid(2 z), which equals x * 0.5 * (1 + tanh(z)) and does not cancel for negative x.
ORC_INLINE float gelu_tanh(float x) {
  const float inner = fused_multiply_add(0.044715f, x * x, 1.0f);
  return x / (1.0f + exponential(-1.59576912f * x * inner));
}

// GELU by the normal distribution: x * Phi(x), with Phi(-a) = exp(-a^2/2) * erfcx(a / sqrt(2)) / 2 for a >= 0, where
// erfcx(t) (1 + 2t) is a polynomial in (t - 3) / (t + 3) (Remez exchange on 0 <= t <= 10.3, relative error 2^-28).
ORC_INLINE float gelu_erf(float x) {
  float a = x < 0.0f ? -x : x;
  a = a > 16.0f ? 16.0f : a;  // Phi(-16) is 0 in single precision
  const float t = a * 0.707106781f;
  const float s = (t - 3.0f) / (t + 3.0f);
  float poly = fused_multiply_add(-0.000266233609f, s, -0.000772674252f);
  poly = fused_multiply_add(poly, s, 0.00200484677f);
  poly = fused_multiply_add(poly, s, 0.00256571455f);
  poly = fused_multiply_add(poly, s, -0.0237995399f);
  poly = fused_multiply_add(poly, s, 0.0682957460f);
  poly = fused_multiply_add(poly, s, -0.119270614f);
  poly = fused_multiply_add(poly, s, 0.129646451f);
  poly = fused_multiply_add(poly, s, -0.0475624201f);
  poly = fused_multiply_add(poly, s, -0.135621141f);
  poly = fused_multiply_add(poly, s, 1.25300806f);
  const float square = a * a;
  const float lost = fused_multiply_add(a, a, -square);  // what rounding took from a^2 matters once it is an exponent
  float tail = exponential(-0.5f * square);
  tail = fused_multiply_add(tail, -0.5f * lost, tail);
  const float beyond = 0.5f * tail * (poly / (1.0f + 2.0f * t));  // Phi(-a)
  return x > 0.0f ? fused_multiply_add(-x, beyond, x) : x * beyond;
}

}  // namespace overlap_recompute
