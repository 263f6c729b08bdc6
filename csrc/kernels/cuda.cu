// CUDA replay kernels: the same formulas as the CPU twins, in a grid that never exceeds the cap on thread blocks.
//
// NOTE [ cap on thread blocks ]
// A replay runs while a collective is in flight, and NCCL's kernel needs multiprocessors of its own: a replay that
// fills the device delays the very transfer it wants to hide behind. Hence every grid here has at most `max_blocks`
// blocks and strides over the rows; no result depends on the grid.
#include <cuda_runtime.h>

#include "device/cuda_check.h"
#include "kernels/cuda_rows.cuh"
#include "kernels/interface.h"
#include "kernels/row_formulas.h"
#include "math/half.h"
#include "math/philox.h"
#include "math/scalar.h"

namespace overlap_recompute {
namespace {

template <bool kSquare, class T>
__device__ float block_sum(const T* input, std::int64_t columns, float center, float* shared) {
  float sums[kSumsPerThread] = {};
  for (std::int64_t first = 0; first < columns; first += kPartialSums) {
    for (int k = 0; k < kSumsPerThread; ++k) {
      const std::int64_t i = first + threadIdx.x * kSumsPerThread + k;
      if (i >= columns) break;
      const float centered = to_float(input[i]) - center;
      sums[k] = kSquare ? fused_multiply_add(centered, centered, sums[k]) : sums[k] + centered;
    }
  }
  float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = shared[threadIdx.x % (kSumThreads / 32)];
  for (int distance = kSumThreads / 64; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  __syncthreads();  // `shared` is free for the next sum
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) row_statistics_kernel(StatisticsArguments a) {
  __shared__ float shared[kSumThreads / 32];
  const float count = static_cast<float>(a.columns);
  for (std::int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const T* input = static_cast<const T*>(a.input) + row * a.columns;
    const float mean = a.mean == nullptr ? 0.0f : block_sum<false>(input, a.columns, 0.0f, shared) / count;
    const float squares = block_sum<true>(input, a.columns, mean, shared);
    if (threadIdx.x == 0) {
      if (a.mean != nullptr) a.mean[row] = mean;
      a.rstd[row] = reciprocal_deviation(squares / count, a.epsilon);
    }
  }
}

template <class T, class P, int kWidth>
__global__ void __launch_bounds__(kRowThreads) normalize_kernel(NormalizeArguments a) {
  for_each_pack<kWidth>(a.rows, a.columns, [&](std::int64_t row, std::int64_t column) {
    const std::int64_t at = row * a.columns + column;
    float value[kWidth], weight[kWidth], bias[kWidth];
    load_pack<T>(a.input, at, value);
    load_pack<P>(a.weight, column, weight);
    load_pack<P>(a.bias, column, bias);
    const float mean = a.mean == nullptr ? 0.0f : a.mean[row];
    const float rstd = a.rstd[row];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const float normalized = (value[k] - mean) * rstd;
      value[k] = affine(normalized, a.weight != nullptr, weight[k], a.bias != nullptr, bias[k]);
    }
    store_pack<T>(value, a.output, at);
  });
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kRowThreads) bias_gelu_kernel(BiasGeluArguments a) {
  for_each_pack<kWidth>(a.rows, a.columns, [&](std::int64_t row, std::int64_t column) {
    const std::int64_t at = row * a.columns + column;
    float value[kWidth], bias[kWidth];
    load_pack<T>(a.input, at, value);
    load_pack<T>(a.bias, column, bias);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const float x = a.bias == nullptr ? value[k] : value[k] + bias[k];
      value[k] = a.form == GeluForm::kTanh ? gelu_tanh(x) : gelu_erf(x);
    }
    store_pack<T>(value, a.output, at);
  });
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kRowThreads) swiglu_kernel(SwigluArguments a) {
  for_each_pack<kWidth>(a.rows, a.columns, [&](std::int64_t row, std::int64_t column) {
    const std::int64_t at = row * 2 * a.columns + column;
    float gate[kWidth], value[kWidth], gate_bias[kWidth], value_bias[kWidth];
    load_pack<T>(a.input, at, gate);
    load_pack<T>(a.input, at + a.columns, value);
    load_pack<T>(a.bias, column, gate_bias);
    load_pack<T>(a.bias, column + a.columns, value_bias);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const bool biased = a.bias != nullptr;
      const float x = biased ? gate[k] + gate_bias[k] : gate[k];
      value[k] = silu(x) * (biased ? value[k] + value_bias[k] : value[k]);
    }
    store_pack<T>(value, a.output, row * a.columns + column);
  });
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kRowThreads) bias_dropout_add_kernel(BiasDropoutAddArguments a) {
  for_each_pack<kWidth>(a.rows, a.columns, [&](std::int64_t row, std::int64_t column) {
    const std::int64_t at = row * a.columns + column;
    float value[kWidth], bias[kWidth], residual[kWidth];
    load_pack<T>(a.input, at, value);
    load_pack<T>(a.bias, column, bias);
    load_pack<T>(a.residual, at, residual);
    PhiloxBlock block{};
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      // A wide pack starts at a multiple of 4, so the block changes every fourth element.
      if (k % 4 == 0) block = philox(a.seed, a.offset, static_cast<std::uint64_t>(at + k) / 4);
      const float x = a.bias == nullptr ? value[k] : value[k] + bias[k];
      const std::uint32_t word = block.word[kWidth == 1 ? at % 4 : k % 4];
      value[k] = residual[k] + dropout(x, word, a.threshold, a.scale);
    }
    store_pack<T>(value, a.output, at);
  });
}

}  // namespace

void cuda_row_statistics(const StatisticsArguments& a, const CudaLaunch& launch) {
  if (a.rows == 0) return;
  const DeviceScope scope(launch.device);
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    const int blocks = grid_blocks(a.rows, launch);
    row_statistics_kernel<T><<<blocks, kSumThreads, 0, static_cast<cudaStream_t>(launch.stream)>>>(a);
  });
  ORC_CUDA_CHECK(cudaGetLastError());
}

void cuda_normalize(const NormalizeArguments& a, const CudaLaunch& launch) {
  const Alignment alignment{a.columns, {a.input, a.weight, a.bias, a.output}};
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (a.parameter_dtype == a.dtype) {
      launch_rows<T>(a, alignment, launch, normalize_kernel<T, T, kPackWidth<T>>, normalize_kernel<T, T, 1>);
    } else {
      launch_rows<T>(a, alignment, launch, normalize_kernel<T, float, kPackWidth<T>>, normalize_kernel<T, float, 1>);
    }
  });
}

void cuda_bias_gelu(const BiasGeluArguments& a, const CudaLaunch& launch) {
  const Alignment alignment{a.columns, {a.input, a.bias, a.output}};
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_rows<T>(a, alignment, launch, bias_gelu_kernel<T, kPackWidth<T>>, bias_gelu_kernel<T, 1>);
  });
}

void cuda_swiglu(const SwigluArguments& a, const CudaLaunch& launch) {
  const Alignment alignment{a.columns, {a.input, a.bias, a.output}};
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_rows<T>(a, alignment, launch, swiglu_kernel<T, kPackWidth<T>>, swiglu_kernel<T, 1>);
  });
}

void cuda_bias_dropout_add(const BiasDropoutAddArguments& a, const CudaLaunch& launch) {
  const Alignment alignment{a.columns, {a.input, a.bias, a.residual, a.output}};
  with_type(a.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch_rows<T>(a, alignment, launch, bias_dropout_add_kernel<T, kPackWidth<T>>, bias_dropout_add_kernel<T, 1>);
  });
}

}  // namespace overlap_recompute
