// The lane: a side stream on which work runs ahead of need, and the fences that bring it back.
//
//   compute: | forward .. | all_reduce wait ....... |   fence.wait  | backward of L7 |
//   lane:                 | open_window  R(L7.fc1) R(L7.activation) |
//                                               ^ each launch yields one fence
//
// NOTE [ what a fence owns ]
//   1. A launch gives the fence one event, recorded behind the work, and whatever the work still reads (its guard).
//   2. `wait(consumer)` makes the consumer stream wait for that event. Where memory is stream ordered (CUDA) the guard
//      is dropped at once: freed memory of the consumer's pool is reused only behind the wait. Elsewhere the guard is
//      kept until the consumer has really passed.
//   3. A fence is waited for once (`keep` leaves it armed for another consumer). A second wait is an error: by then
//      the event may guard something else.
//   4. A fence that is dropped without a wait is counted as abandoned; its guard lives until the lane has passed.
//   5. A lane that is destroyed without `close` does not wait where memory is stream ordered: its stream may be held up
//      by a peer that is gone. What it may still read then stays, for good.
//   6. An exception of the work surfaces once: at the launch when it ran there, else at the first blocking wait, else
//      at the next `collect` or `close`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "device/backend.h"
#include "device/event_pool.h"
#include "trace/stream_marks.h"

namespace overlap_recompute {

// Keeps something alive; the owner's deleter takes whatever lock that needs.
using Guard = std::shared_ptr<void>;

struct LaneCounts {
  std::uint64_t windows, launched, waited, abandoned;
  std::size_t open_fences, guards_held, events_alive, events_in_use;
};

class Fence;

// One launch: shared by the fence and the task, which writes `error` before the event can pass.
struct Launch {
  EventHandle event = 0;
  Guard guard;
  std::exception_ptr error;
};

class Lane : public std::enable_shared_from_this<Lane> {
 public:
  // With `own_stream` false the lane is the calling thread (CPU only). `marks` may be null.
  Lane(std::shared_ptr<Backend> backend, bool own_stream, Priority priority, std::shared_ptr<StreamMarks> marks);
  ~Lane();

  StreamHandle stream() const { return stream_; }

  // Later launches wait for what `compute` has been given so far.
  void follow(StreamHandle compute);
  // The same, for a window: the inputs of the recompute exist by then. `name` goes into its mark.
  void open_window(StreamHandle compute, std::uint32_t name);
  void close_window(std::uint32_t name);

  // Runs `work` on the lane; `value` goes into its marks.
  std::shared_ptr<Fence> launch(std::function<void()> work, Guard guard, std::uint32_t name, std::int64_t value);
  std::shared_ptr<Fence> launch_copy(const EmulatedCopy& copy, Guard guard, std::uint32_t name, std::int64_t value);

  // Drops the guards whose stream has passed; returns how many. Every other call does this too.
  std::size_t collect();
  // Waits for everything launched, then frees stream and events. Fences may still be waited for.
  void close() { finish(true); }

  LaneCounts counts() const;

 private:
  friend class Fence;

  // A guard that outlives its fence, until `event` has passed.
  struct Retired {
    EventHandle event;
    std::shared_ptr<Launch> launch;
  };

  std::shared_ptr<Fence> enqueue(const std::function<void(const std::shared_ptr<Launch>&)>& submit, Guard guard,
                                 std::uint32_t name, std::int64_t value);
  void finish(bool wait);
  void retire(EventHandle event, std::shared_ptr<Launch> launch);
  std::size_t release(std::vector<Retired> retired);
  void mark(std::uint32_t name, MarkKind kind, std::int64_t value);

  const std::shared_ptr<Backend> backend_;
  const std::shared_ptr<StreamMarks> marks_;
  const bool own_stream_;
  EventPool pool_;
  StreamHandle stream_ = 0;
  mutable std::mutex mutex_;
  std::vector<Retired> retired_;
  LaneCounts counts_{};
  bool closed_ = false;
};

class Fence {
 public:
  Fence(std::shared_ptr<Lane> lane, std::shared_ptr<Launch> launch);
  Fence(const Fence&) = delete;
  Fence& operator=(const Fence&) = delete;
  ~Fence();

  // See NOTE [ what a fence owns ]. On the CPU, consumer 0 (the calling thread) blocks.
  void wait(StreamHandle consumer, bool keep);
  // Blocks the calling thread until the work is done. The fence stays armed.
  void host_wait();
  bool passed() const;

 private:
  EventHandle armed_event() const;
  void rethrow_error();

  const std::shared_ptr<Lane> lane_;
  std::shared_ptr<Launch> launch_;  // null once waited for
};

}  // namespace overlap_recompute
