// Streams and events behind one interface, so that the logic above it (lane, trace, link) runs on a CPU too.
//
// Handles are plain integers. On CUDA they are `cudaStream_t` and `cudaEvent_t`: what torch calls `Stream.cuda_stream`
// and `Event.cuda_event`. On the CPU a stream is a worker thread with a queue, and handle 0 is the calling thread,
// where everything submitted is done on return.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace overlap_recompute {

using StreamHandle = std::uintptr_t;
using EventHandle = std::uintptr_t;

// A transfer that takes `duration_ns` and, with both addresses given, copies `bytes`.
struct EmulatedCopy {
  const void* source;
  void* target;
  std::int64_t bytes;
  std::int64_t latency_ns;
  std::int64_t duration_ns;  // of the bytes alone, after the latency
  int blocks;                // CUDA: thread blocks that do the work
};

enum class Priority { kLowest, kHighest };

// A timed event whose host time is known: the zero that other events of its device are measured from.
struct Anchor {
  EventHandle event;
  std::int64_t host_ns;
};

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // A stream that does not wait for the default stream.
  virtual StreamHandle create_stream(Priority priority) = 0;
  // Gives the stream back; with `wait` not before it has done what was submitted. Without, the next stream of a CUDA
  // device may begin behind that work (it is the same one), and the CPU waits all the same. The caller must not be a
  // task of that stream.
  virtual void destroy_stream(StreamHandle stream, bool wait) = 0;
  virtual EventHandle create_event(bool timed) = 0;
  virtual void destroy_event(EventHandle event) = 0;

  virtual void record(EventHandle event, StreamHandle stream) = 0;
  // Later work of `stream` waits for the latest record of `event`; an event never recorded holds nobody up.
  virtual void stream_wait(StreamHandle stream, EventHandle event) = 0;
  virtual bool passed(EventHandle event) = 0;
  // Blocks the calling thread until the event has passed.
  virtual void host_wait(EventHandle event) = 0;
  // When `event` passed, on the clock of monotonic_ns(). It and the anchor must be timed and have passed.
  virtual std::int64_t time_ns(EventHandle event, const Anchor& anchor) = 0;

  // CPU: runs `task` in the order of the stream. CUDA: runs it now; what it launches is in the order of the stream.
  virtual void submit(StreamHandle stream, std::function<void()> task) = 0;
  // Returns at once, unless the stream runs inline.
  virtual void emulate_copy(StreamHandle stream, const EmulatedCopy& copy) = 0;

  // True where memory freed by the host is reused only by later work of the same stream (torch's CUDA allocator).
  virtual bool memory_is_stream_ordered() const = 0;
  // True where submitted work is done on return.
  virtual bool runs_inline(StreamHandle stream) const = 0;
};

// Nanoseconds of the monotonic clock: that of Python's time.monotonic_ns() on Linux.
std::int64_t monotonic_ns();

// Called about every 50 ms by a thread that is blocked in a wait; may throw (Python: a pending Ctrl-C).
using InterruptCheck = void (*)();
void set_interrupt_check(InterruptCheck check);
void check_interrupt();

std::shared_ptr<Backend> make_cpu_backend();

// 0 without a driver, a device, or CUDA in this build: an error counts as none.
int cuda_device_count();
// Null when this build has no CUDA.
std::shared_ptr<Backend> make_cuda_backend(int device);

}  // namespace overlap_recompute
