// A stand-in for a collective on one GPU: a few thread blocks that hold their multiprocessors, and move bytes, for as
// long as a link of given latency and bandwidth would take. It occupies what NCCL would; it talks to nobody.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "device/cuda_check.h"
#include "link/paced_copy.h"

namespace overlap_recompute {
namespace {

constexpr int kThreads = 512;
constexpr std::int64_t kUnit = 16;                  // bytes of one access
constexpr std::int64_t kChunkUnits = kThreads * 4;  // accesses between two looks at the clock: 32 KiB a block

__device__ __forceinline__ std::int64_t global_ns() {
  std::int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__device__ __forceinline__ void wait_until(std::int64_t deadline_ns) {
  while (global_ns() < deadline_ns) __nanosleep(100);
}

// Block b copies chunks b, b + blocks, ...; chunk i may start when the link would have carried the i chunks before it.
__global__ void __launch_bounds__(kThreads) paced_copy_kernel(EmulatedCopy copy) {
  __shared__ std::int64_t start_ns;
  if (threadIdx.x == 0) start_ns = global_ns() + copy.latency_ns;
  __syncthreads();
  const bool copies = copy.source != nullptr && copy.target != nullptr;
  const std::int64_t units = copies ? copy.bytes / kUnit : 0;
  const std::int64_t chunks = (units + kChunkUnits - 1) / kChunkUnits;
  const double chunk_ns = chunks > 0 ? static_cast<double>(copy.duration_ns) / static_cast<double>(chunks) : 0.0;
  const auto* source = static_cast<const uint4*>(copy.source);
  auto* target = static_cast<uint4*>(copy.target);
  for (std::int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    if (threadIdx.x == 0) wait_until(start_ns + static_cast<std::int64_t>(static_cast<double>(chunk) * chunk_ns));
    __syncthreads();
    const std::int64_t last = min(units, (chunk + 1) * kChunkUnits);
    for (std::int64_t i = chunk * kChunkUnits + threadIdx.x; i < last; i += kThreads) target[i] = source[i];
  }
  if (copies && blockIdx.x == 0) {
    const auto* rest = static_cast<const unsigned char*>(copy.source);
    for (std::int64_t i = units * kUnit + threadIdx.x; i < copy.bytes; i += kThreads) {
      static_cast<unsigned char*>(copy.target)[i] = rest[i];
    }
  }
  if (threadIdx.x == 0) wait_until(start_ns + copy.duration_ns);
  __syncthreads();
}

}  // namespace

void launch_paced_copy(const EmulatedCopy& copy, cudaStream_t stream) {
  const auto addresses = reinterpret_cast<std::uintptr_t>(copy.source) | reinterpret_cast<std::uintptr_t>(copy.target);
  if (addresses % kUnit != 0) {
    throw std::invalid_argument("found a source or target that is not aligned to 16 bytes; expected aligned buffers");
  }
  paced_copy_kernel<<<std::max(1, copy.blocks), kThreads, 0, stream>>>(copy);
  ORC_CUDA_CHECK(cudaGetLastError());
}

}  // namespace overlap_recompute
