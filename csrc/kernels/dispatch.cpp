// Chooses the CPU twins that this processor can run.
#include <cstring>

#include "kernels/interface.h"

namespace overlap_recompute {

extern const CpuKernels cpu_kernels_generic;
#if defined(ORC_WITH_X86_VARIANTS)
extern const CpuKernels cpu_kernels_avx2;
extern const CpuKernels cpu_kernels_avx512;
#endif

namespace {

bool wanted(const char* name, const CpuKernels& table) {
  return name == nullptr || std::strcmp(name, table.instruction_set) == 0;
}

}  // namespace

const CpuKernels* cpu_kernels(const char* instruction_set) {
#if defined(ORC_WITH_X86_VARIANTS)
  __builtin_cpu_init();
  // Every processor with AVX2 converts half precision (F16C); older compilers cannot ask for that.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && wanted(instruction_set, cpu_kernels_avx512)) return &cpu_kernels_avx512;
  if (avx2 && wanted(instruction_set, cpu_kernels_avx2)) return &cpu_kernels_avx2;
#endif
  return wanted(instruction_set, cpu_kernels_generic) ? &cpu_kernels_generic : nullptr;
}

}  // namespace overlap_recompute
