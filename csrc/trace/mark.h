// One entry of a trace.
#pragma once

#include <cstdint>

namespace overlap_recompute {

enum class MarkKind : std::uint32_t { kBegin = 0, kEnd = 1, kInstant = 2, kCounter = 3 };

struct Mark {
  std::int64_t time_ns;  // monotonic clock
  std::int64_t value;    // the caller's: a microbatch, a byte count
  std::uint64_t stream;  // handle of the stream whose time this is; 0: the host's own
  std::uint32_t name;    // EventRing::intern
  std::uint32_t thread;  // index of the thread that made the mark, in the order of first marks
  std::uint32_t kind;    // MarkKind
};

}  // namespace overlap_recompute
