// Marks in the time of a stream: an event is recorded now, and turned into a time when the trace is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "device/backend.h"
#include "device/event_pool.h"
#include "trace/event_ring.h"
#include "trace/mark.h"

namespace overlap_recompute {

// NOTE [ device time on the host's clock ]
// An anchor event is recorded and waited for once; its host time is off by the time the host takes to notice (about
// 10 us on a GPU). Later events are measured from it with the device's timer. The distance is a float of milliseconds,
// so after every reading the last resolved event becomes the anchor: distances stay short and exact to 0.5 us.
class StreamMarks {
 public:
  // Waits for `stream` once. At most `capacity` marks wait to be read; further ones are dropped and counted.
  StreamMarks(std::shared_ptr<EventRing> ring, std::shared_ptr<Backend> backend, StreamHandle stream,
              std::size_t capacity);
  ~StreamMarks();

  void mark(StreamHandle stream, std::uint32_t name, std::uint32_t kind, std::int64_t value);

  // The marks whose events have passed, in the order of time; the others stay, and those behind them on their stream.
  std::vector<Mark> drain();

  EventRing& ring() { return *ring_; }
  std::size_t pending() const;
  std::uint64_t dropped() const;
  std::size_t events_alive() const { return pool_.alive(); }

 private:
  struct Pending {
    EventHandle event;
    Mark mark;
  };

  const std::shared_ptr<EventRing> ring_;
  const std::shared_ptr<Backend> backend_;
  const std::size_t capacity_;
  EventPool pool_;
  Anchor anchor_{};
  mutable std::mutex mutex_;
  std::deque<Pending> pending_;
  std::uint64_t dropped_ = 0;
};

}  // namespace overlap_recompute
