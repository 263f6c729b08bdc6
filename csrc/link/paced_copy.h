// The kernel behind an emulated transfer on a GPU.
#pragma once

#include <cuda_runtime.h>

#include "device/backend.h"

namespace overlap_recompute {

void launch_paced_copy(const EmulatedCopy& copy, cudaStream_t stream);

}  // namespace overlap_recompute
