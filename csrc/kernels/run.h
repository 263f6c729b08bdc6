// Runs a replay kernel where its tensors are.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/interface.h"

namespace overlap_recompute {

// device < 0: the CPU, on the calling thread, with the named instruction set or (empty) the best.
struct Target {
  int device;
  std::uintptr_t stream;
  int max_blocks;
  std::string instruction_set;
};

void run(const StatisticsArguments& arguments, const Target& target);
void run(const NormalizeArguments& arguments, const Target& target);
void run(const BiasGeluArguments& arguments, const Target& target);
void run(const SwigluArguments& arguments, const Target& target);
void run(const BiasDropoutAddArguments& arguments, const Target& target);

}  // namespace overlap_recompute
