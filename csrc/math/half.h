// Storage types of 16 bits and their conversions, rounded to nearest, ties to even. Arithmetic is always fp32.
#pragma once

#include <cstdint>

#include "math/scalar.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace overlap_recompute {

struct BFloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

ORC_INLINE float to_float(float value) { return value; }

ORC_INLINE float to_float(BFloat16 value) { return float_of(static_cast<std::uint32_t>(value.bits) << 16); }

ORC_INLINE float to_float(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  const std::uint32_t normal = (magnitude << 13) + (112u << 23);
  const std::uint32_t not_finite = (magnitude << 13) | 0x7f800000u;
  const std::uint32_t subnormal = bits_of(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
  std::uint32_t bits = magnitude >= 0x7c00u ? not_finite : normal;
  bits = magnitude < 0x0400u ? subnormal : bits;
  return float_of(bits | sign);
#endif
}

ORC_INLINE void from_float(float value, float* out) { *out = value; }

ORC_INLINE void from_float(float value, BFloat16* out) {
#if defined(__CUDA_ARCH__)
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out->bits = static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
#endif
}

ORC_INLINE void from_float(float value, Float16* out) {
#if defined(__CUDA_ARCH__)
  out->bits = __half_as_ushort(__float2half_rn(value));
#else
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // In [0.5, 1) one unit in the last place is 2^-24, the step of half-precision subnormals: the addition rounds.
  const std::uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  std::uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  out->bits = static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000u));
#endif
}

}  // namespace overlap_recompute
