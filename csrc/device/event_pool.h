// Events that are used again instead of being created for each fence.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "device/backend.h"

namespace overlap_recompute {

class EventPool {
 public:
  EventPool(std::shared_ptr<Backend> backend, bool timed) : backend_(std::move(backend)), timed_(timed) {}
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;
  ~EventPool() { close(); }

  EventHandle take() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!free_.empty()) {
        const EventHandle event = free_.back();
        free_.pop_back();
        return event;
      }
    }
    const EventHandle event = backend_->create_event(timed_);
    const std::lock_guard<std::mutex> lock(mutex_);
    ++alive_;
    return event;
  }

  // A wait that has been enqueued for the event stays right when the event is recorded again.
  void give(EventHandle event) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!closed_) return free_.push_back(event);
      --alive_;
    }
    backend_->destroy_event(event);
  }

  // Frees what lies in the pool; what is still out is freed when given back.
  void close() noexcept {
    std::vector<EventHandle> rest;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
      rest.swap(free_);
      alive_ -= rest.size();
    }
    for (const EventHandle event : rest) {
      try {
        backend_->destroy_event(event);
      } catch (...) {  // the device is gone, and its events with it
      }
    }
  }

  // Events that exist, in use or not.
  std::size_t alive() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return alive_;
  }

  std::size_t in_use() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return alive_ - free_.size();
  }

 private:
  const std::shared_ptr<Backend> backend_;
  const bool timed_;
  mutable std::mutex mutex_;
  std::vector<EventHandle> free_;
  std::size_t alive_ = 0;
  bool closed_ = false;
};

}  // namespace overlap_recompute
