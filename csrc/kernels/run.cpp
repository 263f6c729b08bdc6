#include "kernels/run.h"

#include <stdexcept>

namespace overlap_recompute {
namespace {

template <class Arguments>
using CpuKernel = void (*CpuKernels::*)(const Arguments&);

#if defined(ORC_WITH_CUDA)
template <class Arguments>
using CudaKernel = void (*)(const Arguments&, const CudaLaunch&);
#define ORC_CUDA_KERNEL(name) name
#else
template <class Arguments>
using CudaKernel = std::nullptr_t;
#define ORC_CUDA_KERNEL(name) nullptr
#endif

template <class Arguments>
void run_on(const Arguments& arguments, const Target& target, CpuKernel<Arguments> cpu, CudaKernel<Arguments> cuda) {
  if (target.device < 0) {
    const char* wanted = target.instruction_set.empty() ? nullptr : target.instruction_set.c_str();
    const CpuKernels* kernels = cpu_kernels(wanted);
    if (kernels == nullptr) {
      throw std::invalid_argument("found instruction set '" + target.instruction_set +
                                  "'; expected one of this build that this processor has");
    }
    return (kernels->*cpu)(arguments);
  }
#if defined(ORC_WITH_CUDA)
  cuda(arguments, CudaLaunch{target.device, reinterpret_cast<void*>(target.stream), target.max_blocks});
#else
  (void)cuda;
  throw std::logic_error("found a CUDA tensor; expected a build of the extension with CUDA");
#endif
}

}  // namespace

void run(const StatisticsArguments& arguments, const Target& target) {
  run_on(arguments, target, &CpuKernels::row_statistics, ORC_CUDA_KERNEL(cuda_row_statistics));
}

void run(const NormalizeArguments& arguments, const Target& target) {
  run_on(arguments, target, &CpuKernels::normalize, ORC_CUDA_KERNEL(cuda_normalize));
}

void run(const BiasGeluArguments& arguments, const Target& target) {
  run_on(arguments, target, &CpuKernels::bias_gelu, ORC_CUDA_KERNEL(cuda_bias_gelu));
}

void run(const SwigluArguments& arguments, const Target& target) {
  run_on(arguments, target, &CpuKernels::swiglu, ORC_CUDA_KERNEL(cuda_swiglu));
}

void run(const BiasDropoutAddArguments& arguments, const Target& target) {
  run_on(arguments, target, &CpuKernels::bias_dropout_add, ORC_CUDA_KERNEL(cuda_bias_dropout_add));
}

}  // namespace overlap_recompute
