// The flight recorder behind traces: always on, of fixed size, and cheap enough to leave in the hot path.
//
// NOTE [ one producer, one reader, no lock ]
// Each thread writes a ring of its own, so a mark takes no lock and waits for nobody; when the ring is full the oldest
// mark is overwritten. The reader may come at any time. A slot carries a sequence number: 2 i + 1 while mark i is being
// written, 2 i + 2 when it is whole. A reader that does not find 2 i + 2 before and after copying counts the mark as
// overwritten. Only the first mark of a thread takes a lock, to get its ring.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "device/backend.h"
#include "trace/mark.h"

namespace overlap_recompute {

class ThreadRing {
 public:
  explicit ThreadRing(std::size_t capacity) : slots_(new Slot[capacity]), mask_(capacity - 1) {}

  void push(std::int64_t time_ns, std::uint32_t name, std::uint32_t kind, std::int64_t value) {
    const std::uint64_t index = head_.load(std::memory_order_relaxed);
    Slot& slot = slots_[index & mask_];
    slot.sequence.store(2 * index + 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    slot.time_ns.store(time_ns, std::memory_order_relaxed);
    slot.value.store(value, std::memory_order_relaxed);
    slot.name_and_kind.store(static_cast<std::uint64_t>(name) << 32 | kind, std::memory_order_relaxed);
    slot.sequence.store(2 * index + 2, std::memory_order_release);
    head_.store(index + 1, std::memory_order_release);
  }

  // Appends the marks since the last call; returns how many were overwritten before they could be read.
  std::uint64_t drain(std::vector<Mark>* marks);

  // A ring whose thread has ended may go to another thread once it is empty.
  bool reusable() const { return retired_.load(std::memory_order_acquire) && tail_ == head_.load(); }
  void retire() { retired_.store(true, std::memory_order_release); }
  void adopt(std::uint32_t thread) {
    thread_ = thread;
    retired_.store(false, std::memory_order_release);
  }

 private:
  struct Slot {
    std::atomic<std::uint64_t> sequence{0};
    std::atomic<std::int64_t> time_ns{0}, value{0};
    std::atomic<std::uint64_t> name_and_kind{0};
  };

  const std::unique_ptr<Slot[]> slots_;
  const std::uint64_t mask_;
  alignas(64) std::atomic<std::uint64_t> head_{0};
  alignas(64) std::uint64_t tail_ = 0;  // the reader's, as is thread_
  std::uint32_t thread_ = 0;
  std::atomic<bool> retired_{false};
};

class EventRing {
 public:
  // Marks kept per thread: `capacity` rounded up to a power of two.
  explicit EventRing(std::size_t capacity);

  // The number of a name; the same name gets the same number.
  std::uint32_t intern(const std::string& name);
  std::vector<std::string> names() const;

  void mark(std::uint32_t name, std::uint32_t kind, std::int64_t value) {
    own_ring()->push(monotonic_ns(), name, kind, value);
  }

  // All threads' marks since the last call, in the order of time.
  std::vector<Mark> drain();

  std::size_t capacity() const { return capacity_; }
  // Marks lost so far because the ring was full.
  std::uint64_t overwritten() const { return overwritten_.load(std::memory_order_relaxed); }
  // Operating-system number of each thread that made a mark; Mark::thread is an index into it.
  std::vector<std::int64_t> threads() const;
  std::uint32_t own_thread() { return own_index(); }

 private:
  ThreadRing* own_ring();
  std::uint32_t own_index();
  ThreadRing* register_thread();

  const std::uint64_t id_;  // never used again, unlike an address
  const std::size_t capacity_;
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<ThreadRing>> rings_;
  std::vector<std::int64_t> threads_;
  std::unordered_map<std::string, std::uint32_t> numbers_;
  std::vector<std::string> names_;
  std::atomic<std::uint64_t> overwritten_{0};
};

// Orders by time; marks of equal time keep their order.
void sort_by_time(std::vector<Mark>* marks);

}  // namespace overlap_recompute
