// What a replay kernel is given. All tensors are contiguous; a "row" is the last dimension.
#pragma once

#include <cstdint>

namespace overlap_recompute {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum class GeluForm : int { kTanh = 0, kErf = 1 };

// mean, rstd: [rows], of input: [rows, columns]. Without `mean`, rstd is that of RMSNorm.
struct StatisticsArguments {
  const void* input;
  float* mean;
  float* rstd;
  std::int64_t rows, columns;
  float epsilon;
  DType dtype;
};

// output = (input - mean) * rstd * weight + bias; mean, weight and bias may be null.
struct NormalizeArguments {
  const void* input;
  const void* weight;
  const void* bias;
  const float* mean;
  const float* rstd;
  void* output;
  std::int64_t rows, columns;
  DType dtype, parameter_dtype;
};

// output = gelu(input + bias); bias may be null.
struct BiasGeluArguments {
  const void* input;
  const void* bias;
  void* output;
  std::int64_t rows, columns;
  DType dtype;
  GeluForm form;
};

// input: [rows, 2 * columns], bias: [2 * columns] or null; output: [rows, columns] = silu(first half) * second half.
struct SwigluArguments {
  const void* input;
  const void* bias;
  void* output;
  std::int64_t rows, columns;
  DType dtype;
};

// output = residual + dropout(input + bias); bias may be null.
struct BiasDropoutAddArguments {
  const void* input;
  const void* bias;
  const void* residual;
  void* output;
  std::int64_t rows, columns;
  DType dtype;
  std::uint32_t threshold;  // an element is dropped where its random word lies below
  float scale;
  std::uint64_t seed, offset;
};

// The CPU twins of one instruction set. All run on the calling thread.
struct CpuKernels {
  const char* instruction_set;
  void (*row_statistics)(const StatisticsArguments&);
  void (*normalize)(const NormalizeArguments&);
  void (*bias_gelu)(const BiasGeluArguments&);
  void (*swiglu)(const SwigluArguments&);
  void (*bias_dropout_add)(const BiasDropoutAddArguments&);
};

// The best table that this processor can run, or the one named ("generic", "avx2", "avx512"); null if it cannot.
const CpuKernels* cpu_kernels(const char* instruction_set = nullptr);

#if defined(ORC_WITH_CUDA)
// Launches on `stream` of `device`, with at most `max_blocks` thread blocks (0: as many as fill the device).
struct CudaLaunch {
  int device;
  void* stream;
  int max_blocks;
};

void cuda_row_statistics(const StatisticsArguments&, const CudaLaunch&);
void cuda_normalize(const NormalizeArguments&, const CudaLaunch&);
void cuda_bias_gelu(const BiasGeluArguments&, const CudaLaunch&);
void cuda_swiglu(const SwigluArguments&, const CudaLaunch&);
void cuda_bias_dropout_add(const BiasDropoutAddArguments&, const CudaLaunch&);
#endif

}  // namespace overlap_recompute
