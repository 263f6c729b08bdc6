// CPU twins of the replay kernels. Compiled once per instruction set, with ORC_INSTRUCTION_SET naming it; everything
// here has internal linkage and no standard container is used, so that no AVX code can reach an older processor.
//
// Each twin works on blocks that stay in the first-level cache: load to fp32, compute in simple loops that the compiler
// vectorizes, store. (`-fopenmp-simd` honours the pragmas without an OpenMP runtime.)
#include <cstdint>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels/interface.h"
#include "kernels/row_formulas.h"
#include "math/half.h"
#include "math/philox.h"
#include "math/scalar.h"

#define ORC_JOIN(a, b) a##b
#define ORC_TABLE(name) ORC_JOIN(cpu_kernels_, name)
#define ORC_TEXT(name) #name
#define ORC_NAME(name) ORC_TEXT(name)

namespace overlap_recompute {
namespace {

constexpr std::int64_t kBlock = 512;  // elements; a few blocks of fp32 fill half a first-level cache

template <class T>
ORC_INLINE void load(const T* source, float* target, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) target[i] = to_float(source[i]);
}

template <class T>
ORC_INLINE void store(const float* source, T* target, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) from_float(source[i], target + i);
}

#if defined(__F16C__)
// The compiler does not vectorize its own half precision; the processor converts 8 at a time, to the same bits.
ORC_INLINE void load(const Float16* source, float* target, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
    _mm256_storeu_ps(target + i, _mm256_cvtph_ps(half));
  }
  for (; i < count; ++i) target[i] = to_float(source[i]);
}

ORC_INLINE void store(const float* source, Float16* target, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), half);
  }
  for (; i < count; ++i) from_float(source[i], target + i);
}
#endif

// values[i] += bias[i], if there is a bias.
template <class T>
ORC_INLINE void add_bias(const T* bias, float* values, std::int64_t count) {
  if (bias == nullptr) return;
  float own[kBlock];
  load(bias, own, count);
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) values[i] += own[i];
}

// Calls work(row, first column, columns) for every block of every row.
template <class Work>
ORC_INLINE void for_each_block(std::int64_t rows, std::int64_t columns, const Work& work) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t first = 0; first < columns; first += kBlock) {
      work(row, first, columns - first < kBlock ? columns - first : kBlock);
    }
  }
}

// Calls work with a value of the storage type that `dtype` names.
template <class Work>
ORC_INLINE void with_type(DType dtype, const Work& work) {
  switch (dtype) {
    case DType::kFloat32: return work(float{});
    case DType::kBFloat16: return work(BFloat16{});
    case DType::kFloat16: return work(Float16{});
  }
}

ORC_INLINE float fold(float* sums) {
  for (int thread = 0; thread < kSumThreads; ++thread) {
    const float* own = sums + thread * kSumsPerThread;
    sums[thread] = (own[0] + own[1]) + (own[2] + own[3]);
  }
  for (int warp = 0; warp < kSumThreads / 32; ++warp) {
    float* lane = sums + warp * 32;
    for (int distance = 16; distance > 0; distance /= 2) {
      for (int i = 0; i < distance; ++i) lane[i] += lane[i + distance];
    }
    sums[warp] = lane[0];
  }
  for (int distance = kSumThreads / 64; distance > 0; distance /= 2) {
    for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
  }
  return sums[0];
}

// Sum over the row of (x - center), or of (x - center)^2.
template <bool kSquare, class T>
ORC_INLINE float row_sum(const T* input, std::int64_t columns, float center) {
  float sums[kPartialSums] = {};
  for (std::int64_t first = 0; first < columns; first += kPartialSums) {
    const std::int64_t count = columns - first < kPartialSums ? columns - first : kPartialSums;
    const T* values = input + first;
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) {
      const float centered = to_float(values[i]) - center;
      sums[i] = kSquare ? fused_multiply_add(centered, centered, sums[i]) : sums[i] + centered;
    }
  }
  return fold(sums);
}

void row_statistics(const StatisticsArguments& a) {
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    const float count = static_cast<float>(a.columns);
    for (std::int64_t row = 0; row < a.rows; ++row) {
      const T* input = static_cast<const T*>(a.input) + row * a.columns;
      const float mean = a.mean == nullptr ? 0.0f : row_sum<false>(input, a.columns, 0.0f) / count;
      if (a.mean != nullptr) a.mean[row] = mean;
      a.rstd[row] = reciprocal_deviation(row_sum<true>(input, a.columns, mean) / count, a.epsilon);
    }
  });
}

template <class T, class P>
ORC_INLINE void normalize_rows(const NormalizeArguments& a) {
  const T* input = static_cast<const T*>(a.input);
  const P* weight = static_cast<const P*>(a.weight);
  const P* bias = static_cast<const P*>(a.bias);
  const bool has_weight = weight != nullptr, has_bias = bias != nullptr;
  for_each_block(a.rows, a.columns, [&](std::int64_t row, std::int64_t first, std::int64_t count) {
    float value[kBlock], w[kBlock], b[kBlock];
    const float mean = a.mean == nullptr ? 0.0f : a.mean[row];
    const float rstd = a.rstd[row];
    load(input + row * a.columns + first, value, count);
    if (has_weight) load(weight + first, w, count);
    if (has_bias) load(bias + first, b, count);
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) value[i] = (value[i] - mean) * rstd;
    if (has_weight && has_bias) {
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) value[i] = affine(value[i], true, w[i], true, b[i]);
    } else if (has_weight) {
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) value[i] = affine(value[i], true, w[i], false, 0.0f);
    } else if (has_bias) {
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) value[i] = affine(value[i], false, 0.0f, true, b[i]);
    }
    store(value, static_cast<T*>(a.output) + row * a.columns + first, count);
  });
}

void normalize(const NormalizeArguments& a) {
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (a.parameter_dtype == a.dtype) return normalize_rows<T, T>(a);
    return normalize_rows<T, float>(a);
  });
}

void bias_gelu(const BiasGeluArguments& a) {
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* bias = static_cast<const T*>(a.bias);
    for_each_block(a.rows, a.columns, [&](std::int64_t row, std::int64_t first, std::int64_t count) {
      float value[kBlock];
      const std::int64_t at = row * a.columns + first;
      load(static_cast<const T*>(a.input) + at, value, count);
      add_bias(bias == nullptr ? bias : bias + first, value, count);
      if (a.form == GeluForm::kTanh) {
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) value[i] = gelu_tanh(value[i]);
      } else {
#pragma omp simd
        for (std::int64_t i = 0; i < count; ++i) value[i] = gelu_erf(value[i]);
      }
      store(value, static_cast<T*>(a.output) + at, count);
    });
  });
}

void swiglu(const SwigluArguments& a) {
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* bias = static_cast<const T*>(a.bias);
    for_each_block(a.rows, a.columns, [&](std::int64_t row, std::int64_t first, std::int64_t count) {
      float gate[kBlock], value[kBlock];
      const T* input = static_cast<const T*>(a.input) + row * 2 * a.columns + first;
      load(input, gate, count);
      load(input + a.columns, value, count);
      add_bias(bias == nullptr ? bias : bias + first, gate, count);
      add_bias(bias == nullptr ? bias : bias + a.columns + first, value, count);
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) value[i] = silu(gate[i]) * value[i];
      store(value, static_cast<T*>(a.output) + row * a.columns + first, count);
    });
  });
}

// Random words of `count` elements from flat position `at` on; returns where the first one lies in `words`, which
// must have room for the two blocks of 4 that are cut at the ends.
ORC_INLINE const std::uint32_t* random_words(const BiasDropoutAddArguments& a, std::int64_t at, std::int64_t count,
                                             std::uint32_t* words) {
  const std::int64_t first = at / 4, last = (at + count + 3) / 4;
#pragma omp simd
  for (std::int64_t i = 0; i < last - first; ++i) {
    const PhiloxBlock block = philox(a.seed, a.offset, static_cast<std::uint64_t>(first + i));
    words[4 * i] = block.word[0];
    words[4 * i + 1] = block.word[1];
    words[4 * i + 2] = block.word[2];
    words[4 * i + 3] = block.word[3];
  }
  return words + at % 4;
}

void bias_dropout_add(const BiasDropoutAddArguments& a) {
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    const T* bias = static_cast<const T*>(a.bias);
    for_each_block(a.rows, a.columns, [&](std::int64_t row, std::int64_t first, std::int64_t count) {
      float value[kBlock], residual[kBlock];
      std::uint32_t buffer[kBlock + 8];
      const std::int64_t at = row * a.columns + first;
      load(static_cast<const T*>(a.input) + at, value, count);
      load(static_cast<const T*>(a.residual) + at, residual, count);
      add_bias(bias == nullptr ? bias : bias + first, value, count);
      const std::uint32_t* words = random_words(a, at, count, buffer);
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) {
        value[i] = residual[i] + dropout(value[i], words[i], a.threshold, a.scale);
      }
      store(value, static_cast<T*>(a.output) + at, count);
    });
  });
}

}  // namespace

extern const CpuKernels ORC_TABLE(ORC_INSTRUCTION_SET);
const CpuKernels ORC_TABLE(ORC_INSTRUCTION_SET) = {ORC_NAME(ORC_INSTRUCTION_SET), row_statistics, normalize, bias_gelu,
                                                   swiglu, bias_dropout_add};

}  // namespace overlap_recompute
