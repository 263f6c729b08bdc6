// Philox 4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011). A draw depends on (seed, offset, position) alone: not on the device, nor on how many thread
// blocks run, so a capped replay draws what the forward drew.
//
// Element i of a tensor takes word i % 4 of the block with key = seed and counter = (offset, i / 4), low words first:
// what curand_init(seed, subsequence = i / 4, offset = 4 * offset) yields.
#pragma once

#include <cstdint>

#include "math/scalar.h"

namespace overlap_recompute {

struct PhiloxBlock {
  std::uint32_t word[4];
};

ORC_INLINE PhiloxBlock philox(std::uint64_t seed, std::uint64_t offset, std::uint64_t position) {
  std::uint32_t c0 = static_cast<std::uint32_t>(offset);
  std::uint32_t c1 = static_cast<std::uint32_t>(offset >> 32);
  std::uint32_t c2 = static_cast<std::uint32_t>(position);
  std::uint32_t c3 = static_cast<std::uint32_t>(position >> 32);
  std::uint32_t k0 = static_cast<std::uint32_t>(seed);
  std::uint32_t k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = static_cast<std::uint64_t>(0xD2511F53u) * c0;
    const std::uint64_t product1 = static_cast<std::uint64_t>(0xCD9E8D57u) * c2;
    const std::uint32_t next0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ k0;
    const std::uint32_t next2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(product1);
    c3 = static_cast<std::uint32_t>(product0);
    c0 = next0;
    c2 = next2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The value of dropout: kept and scaled where the word reaches the threshold, else 0 (also where x is not finite).
ORC_INLINE float dropout(float x, std::uint32_t word, std::uint32_t threshold, float scale) {
  return word >= threshold ? x * scale : 0.0f;
}

}  // namespace overlap_recompute
