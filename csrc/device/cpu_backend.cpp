// The CPU implementation of streams and events.
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "device/backend.h"

namespace overlap_recompute {

std::int64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

namespace {

std::atomic<InterruptCheck> interrupt_check{nullptr};

constexpr auto kInterruptPeriod = std::chrono::milliseconds(50);

// Like CUDA's: a record bumps `recorded` at once and `completed` when its stream reaches it.
class CpuEvent {
 public:
  std::uint64_t begin_record() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return ++recorded_;
  }

  void complete(std::uint64_t ticket) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ticket > completed_) completed_ = ticket;
      time_ns_ = monotonic_ns();
    }
    changed_.notify_all();
  }

  std::uint64_t latest_ticket() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return recorded_;
  }

  bool passed() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return completed_ >= recorded_;
  }

  std::int64_t time_ns() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return time_ns_;
  }

  void wait(std::uint64_t ticket) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return completed_ >= ticket; });
  }

  void interruptible_wait(std::uint64_t ticket) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!changed_.wait_for(lock, kInterruptPeriod, [&] { return completed_ >= ticket; })) {
      lock.unlock();
      check_interrupt();
      lock.lock();
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t recorded_ = 0, completed_ = 0;
  std::int64_t time_ns_ = 0;
};

// A worker thread and its queue. The worker shares the queue, so that a task which drops the last handle of its own
// stream destroys nothing under its feet.
class CpuStream {
 public:
  struct Queue {
    std::mutex mutex;
    std::condition_variable filled;
    std::deque<std::function<void()>> tasks;
    // Touched by the worker alone: when the emulated wire is free, and when the last event waited for had passed.
    std::int64_t free_at_ns = 0, ready_at_ns = 0;
  };

  CpuStream() : queue_(std::make_shared<Queue>()), worker_([queue = queue_] { run(*queue); }) {}

  ~CpuStream() {
    push(nullptr);
    if (worker_.get_id() == std::this_thread::get_id()) {
      worker_.detach();
    } else {
      worker_.join();
    }
  }

  void push(std::function<void()> task) {
    {
      const std::lock_guard<std::mutex> lock(queue_->mutex);
      queue_->tasks.push_back(std::move(task));
    }
    queue_->filled.notify_one();
  }

  // For tasks of this stream: they run while the queue lives.
  Queue* queue() { return queue_.get(); }

 private:
  static void run(Queue& queue) {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock<std::mutex> lock(queue.mutex);
        queue.filled.wait(lock, [&] { return !queue.tasks.empty(); });
        task = std::move(queue.tasks.front());
        queue.tasks.pop_front();
      }
      if (!task) return;
      task();
    }
  }

  const std::shared_ptr<Queue> queue_;
  std::thread worker_;
};

void sleep_until_ns(std::int64_t deadline_ns) {
  const timespec deadline{static_cast<time_t>(deadline_ns / 1'000'000'000),
                          static_cast<long>(deadline_ns % 1'000'000'000)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, nullptr) == EINTR) {
  }
}

// The bytes follow those of the transfer before; the latency of one overlaps the bytes of the next.
void run_copy(const EmulatedCopy& copy, std::int64_t ready_at_ns, std::int64_t* free_at_ns) {
  *free_at_ns = std::max(ready_at_ns, *free_at_ns) + copy.duration_ns;
  if (copy.source != nullptr && copy.target != nullptr) {
    std::memcpy(copy.target, copy.source, static_cast<std::size_t>(copy.bytes));
  }
  sleep_until_ns(*free_at_ns + copy.latency_ns);
}

template <class Item>
class Registry {
 public:
  explicit Registry(const char* kind) : kind_(kind) {}

  std::uintptr_t add(std::shared_ptr<Item> item) {
    const auto handle = reinterpret_cast<std::uintptr_t>(item.get());
    const std::lock_guard<std::mutex> lock(mutex_);
    items_.emplace(handle, std::move(item));
    return handle;
  }

  std::shared_ptr<Item> get(std::uintptr_t handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return find(handle)->second;
  }

  std::shared_ptr<Item> remove(std::uintptr_t handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto place = find(handle);
    auto item = std::move(place->second);
    items_.erase(place);
    return item;
  }

 private:
  typename std::unordered_map<std::uintptr_t, std::shared_ptr<Item>>::iterator find(std::uintptr_t handle) {
    const auto place = items_.find(handle);
    if (place == items_.end()) {
      throw std::invalid_argument("found CPU " + std::string(kind_) + " handle " + std::to_string(handle) +
                                  "; expected one that this backend created and has not destroyed");
    }
    return place;
  }

  const char* kind_;
  std::mutex mutex_;
  std::unordered_map<std::uintptr_t, std::shared_ptr<Item>> items_;
};

class CpuBackend final : public Backend {
 public:
  StreamHandle create_stream(Priority) override { return streams_.add(std::make_shared<CpuStream>()); }
  void destroy_stream(StreamHandle stream, bool) override { streams_.remove(stream); }
  EventHandle create_event(bool) override { return events_.add(std::make_shared<CpuEvent>()); }
  void destroy_event(EventHandle event) override { events_.remove(event); }

  void record(EventHandle handle, StreamHandle stream) override {
    auto event = events_.get(handle);
    const std::uint64_t ticket = event->begin_record();
    submit(stream, [event, ticket] { event->complete(ticket); });
  }

  void stream_wait(StreamHandle stream, EventHandle handle) override {
    auto event = events_.get(handle);
    const std::uint64_t ticket = event->latest_ticket();
    if (runs_inline(stream)) return event->interruptible_wait(ticket);
    const auto worker = streams_.get(stream);
    worker->push([event, ticket, queue = worker->queue()] {
      event->wait(ticket);
      queue->ready_at_ns = event->time_ns();
    });
  }

  bool passed(EventHandle event) override { return events_.get(event)->passed(); }

  void host_wait(EventHandle handle) override {
    auto event = events_.get(handle);
    event->interruptible_wait(event->latest_ticket());
  }

  std::int64_t time_ns(EventHandle event, const Anchor&) override { return events_.get(event)->time_ns(); }

  void submit(StreamHandle stream, std::function<void()> task) override {
    if (runs_inline(stream)) return task();
    streams_.get(stream)->push(std::move(task));
  }

  void emulate_copy(StreamHandle stream, const EmulatedCopy& copy) override {
    const std::int64_t submitted_ns = monotonic_ns();
    if (runs_inline(stream)) {
      std::int64_t free_at_ns = 0;
      return run_copy(copy, submitted_ns, &free_at_ns);
    }
    const auto worker = streams_.get(stream);
    worker->push([copy, submitted_ns, queue = worker->queue()] {
      run_copy(copy, std::max(submitted_ns, queue->ready_at_ns), &queue->free_at_ns);
    });
  }

  bool memory_is_stream_ordered() const override { return false; }
  bool runs_inline(StreamHandle stream) const override { return stream == 0; }

 private:
  Registry<CpuStream> streams_{"stream"};
  Registry<CpuEvent> events_{"event"};
};

}  // namespace

void set_interrupt_check(InterruptCheck check) { interrupt_check.store(check); }

void check_interrupt() {
  if (const InterruptCheck check = interrupt_check.load()) check();
}

std::shared_ptr<Backend> make_cpu_backend() { return std::make_shared<CpuBackend>(); }

#if !defined(ORC_WITH_CUDA)
int cuda_device_count() { return 0; }
std::shared_ptr<Backend> make_cuda_backend(int) { return nullptr; }
#endif

}  // namespace overlap_recompute
