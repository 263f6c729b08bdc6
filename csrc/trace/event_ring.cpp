#include "trace/event_ring.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace overlap_recompute {
namespace {

std::atomic<std::uint64_t> next_ring_id{1};

struct OwnRing {
  std::uint64_t id;
  ThreadRing* ring;
  std::uint32_t thread;
};

// The ring that this thread used last: trivial, so that reading it costs no initialization check.
thread_local OwnRing last_used{0, nullptr, 0};

// Every ring that this thread writes; retires them when the thread ends.
struct OwnRings {
  struct Entry {
    OwnRing own;
    std::weak_ptr<ThreadRing> alive;
  };
  std::vector<Entry> entries;

  ~OwnRings() {
    for (const Entry& entry : entries) {
      if (const auto ring = entry.alive.lock()) ring->retire();
    }
  }
};

thread_local OwnRings own_rings;

std::size_t power_of_two(std::size_t least) {
  std::size_t power = 2;
  while (power < least) power *= 2;
  return power;
}

}  // namespace

std::uint64_t ThreadRing::drain(std::vector<Mark>* marks) {
  const std::uint64_t head = head_.load(std::memory_order_acquire);
  const std::uint64_t capacity = mask_ + 1;
  const std::uint64_t first = head - tail_ > capacity ? head - capacity : tail_;
  std::uint64_t lost = first - tail_;
  for (std::uint64_t index = first; index < head; ++index) {
    const Slot& slot = slots_[index & mask_];
    const std::uint64_t before = slot.sequence.load(std::memory_order_acquire);
    const std::int64_t time_ns = slot.time_ns.load(std::memory_order_relaxed);
    const std::int64_t value = slot.value.load(std::memory_order_relaxed);
    const std::uint64_t name_and_kind = slot.name_and_kind.load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    const std::uint64_t after = slot.sequence.load(std::memory_order_relaxed);
    if (before != 2 * index + 2 || after != before) {
      ++lost;
      continue;
    }
    marks->push_back({time_ns, value, 0, static_cast<std::uint32_t>(name_and_kind >> 32), thread_,
                      static_cast<std::uint32_t>(name_and_kind)});
  }
  tail_ = head;
  return lost;
}

EventRing::EventRing(std::size_t capacity) : id_(next_ring_id.fetch_add(1)), capacity_(power_of_two(capacity)) {}

std::uint32_t EventRing::intern(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto [place, added] = numbers_.try_emplace(name, static_cast<std::uint32_t>(names_.size()));
  if (added) names_.push_back(name);
  return place->second;
}

std::vector<std::string> EventRing::names() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return names_;
}

std::vector<std::int64_t> EventRing::threads() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return threads_;
}

ThreadRing* EventRing::own_ring() {
  if (__builtin_expect(last_used.id == id_, 1)) return last_used.ring;
  for (const auto& entry : own_rings.entries) {
    if (entry.own.id == id_) {
      last_used = entry.own;
      return last_used.ring;
    }
  }
  return register_thread();
}

std::uint32_t EventRing::own_index() {
  own_ring();
  return last_used.thread;
}

ThreadRing* EventRing::register_thread() {
  std::shared_ptr<ThreadRing> ring;
  std::uint32_t thread = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto free = std::find_if(rings_.begin(), rings_.end(), [](const auto& r) { return r->reusable(); });
    if (free != rings_.end()) {
      ring = *free;
    } else {
      ring = std::make_shared<ThreadRing>(capacity_);
      rings_.push_back(ring);
    }
    thread = static_cast<std::uint32_t>(threads_.size());
    threads_.push_back(syscall(SYS_gettid));
    ring->adopt(thread);
  }
  auto& entries = own_rings.entries;
  entries.erase(std::remove_if(entries.begin(), entries.end(), [](const auto& e) { return e.alive.expired(); }),
                entries.end());
  last_used = {id_, ring.get(), thread};
  entries.push_back({last_used, ring});
  return last_used.ring;
}

std::vector<Mark> EventRing::drain() {
  std::vector<Mark> marks;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::uint64_t lost = 0;
    for (const auto& ring : rings_) lost += ring->drain(&marks);
    overwritten_.fetch_add(lost, std::memory_order_relaxed);
  }
  sort_by_time(&marks);
  return marks;
}

void sort_by_time(std::vector<Mark>* marks) {
  std::stable_sort(marks->begin(), marks->end(), [](const Mark& a, const Mark& b) { return a.time_ns < b.time_ns; });
}

}  // namespace overlap_recompute
