// How the CUDA kernels walk rows: packs of 16 bytes where alignment allows, else single elements.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "device/cuda_check.h"
#include "kernels/interface.h"
#include "math/half.h"

namespace overlap_recompute {

constexpr int kRowThreads = 512;

template <class T>
constexpr int kPackWidth = 16 / sizeof(T);

// `kBytes` wide loads may take two instructions (fp32 parameters beside 16-bit activations: 32 bytes).
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth < 16 ? sizeof(T) * kWidth : 16) Pack {
  T element[kWidth];
};

// A null source reads as zeros.
template <class T, int kWidth>
__device__ __forceinline__ void load_pack(const void* source, std::int64_t at, float (&target)[kWidth]) {
  if (source == nullptr) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) target[k] = 0.0f;
    return;
  }
  const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(static_cast<const T*>(source) + at);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) target[k] = to_float(pack.element[k]);
}

template <class T, int kWidth>
__device__ __forceinline__ void store_pack(const float (&source)[kWidth], void* target, std::int64_t at) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) from_float(source[k], &pack.element[k]);
  *reinterpret_cast<Pack<T, kWidth>*>(static_cast<T*>(target) + at) = pack;
}

template <int kWidth, class Work>
__device__ __forceinline__ void for_each_pack(std::int64_t rows, std::int64_t columns, const Work& work) {
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kWidth;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    for (std::int64_t column = threadIdx.x * kWidth; column < columns; column += step) work(row, column);
  }
}

// Calls work with a value of the storage type that `dtype` names.
template <class Work>
void with_type(DType dtype, const Work& work) {
  switch (dtype) {
    case DType::kFloat32: return work(float{});
    case DType::kBFloat16: return work(BFloat16{});
    case DType::kFloat16: return work(Float16{});
  }
}

// Whether rows of `columns` elements at these addresses can be read in packs of 16 bytes.
struct Alignment {
  std::int64_t columns;
  std::initializer_list<const void*> addresses;

  bool allows(int width) const {
    return columns % width == 0 && std::all_of(addresses.begin(), addresses.end(), [](const void* address) {
             return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
           });
  }
};

// One block per row, capped by the caller, or by four blocks per multiprocessor.
inline int grid_blocks(std::int64_t rows, const CudaLaunch& launch) {
  int cap = launch.max_blocks;
  if (cap <= 0) {
    int multiprocessors = 0;
    ORC_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, launch.device));
    cap = 4 * multiprocessors;
  }
  return static_cast<int>(std::min<std::int64_t>(rows, cap));
}

template <class T, class Arguments>
void launch_rows(const Arguments& a, const Alignment& alignment, const CudaLaunch& launch, void (*wide)(Arguments),
                 void (*narrow)(Arguments)) {
  if (a.rows == 0 || a.columns == 0) return;
  const DeviceScope scope(launch.device);
  const int width = alignment.allows(kPackWidth<T>) ? kPackWidth<T> : 1;
  const std::int64_t packs = (a.columns + width - 1) / width;
  const int threads = static_cast<int>(std::min<std::int64_t>(kRowThreads, (packs + 31) / 32 * 32));
  const int blocks = grid_blocks(a.rows, launch);
  (width == 1 ? narrow : wide)<<<blocks, threads, 0, static_cast<cudaStream_t>(launch.stream)>>>(a);
  ORC_CUDA_CHECK(cudaGetLastError());
}

}  // namespace overlap_recompute
