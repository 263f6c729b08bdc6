#include "lane/lane.h"

#include <stdexcept>
#include <utility>

namespace overlap_recompute {

Lane::Lane(std::shared_ptr<Backend> backend, bool own_stream, Priority priority, std::shared_ptr<StreamMarks> marks)
    : backend_(std::move(backend)), marks_(std::move(marks)), own_stream_(own_stream), pool_(backend_, false) {
  if (own_stream) stream_ = backend_->create_stream(priority);
}

Lane::~Lane() {
  try {
    finish(!backend_->memory_is_stream_ordered());
  } catch (...) {  // the error of a launch that nobody waited for; there is nobody left to tell
  }
}

void Lane::mark(std::uint32_t name, MarkKind kind, std::int64_t value) {
  if (marks_ && name) marks_->mark(stream_, name, static_cast<std::uint32_t>(kind), value);
}

void Lane::follow(StreamHandle compute) {
  const EventHandle event = pool_.take();
  try {
    backend_->record(event, compute);
    backend_->stream_wait(stream_, event);
  } catch (...) {
    pool_.give(event);
    throw;
  }
  pool_.give(event);
}

void Lane::open_window(StreamHandle compute, std::uint32_t name) {
  collect();
  follow(compute);
  if (marks_ && name) marks_->ring().mark(name, static_cast<std::uint32_t>(MarkKind::kBegin), 0);
  const std::lock_guard<std::mutex> lock(mutex_);
  ++counts_.windows;
}

void Lane::close_window(std::uint32_t name) {
  if (marks_ && name) marks_->ring().mark(name, static_cast<std::uint32_t>(MarkKind::kEnd), 0);
}

std::shared_ptr<Fence> Lane::launch(std::function<void()> work, Guard guard, std::uint32_t name, std::int64_t value) {
  const auto submit = [&](const std::shared_ptr<Launch>& launch) {
    backend_->submit(stream_, [launch, work = std::move(work)] {
      try {
        work();
      } catch (...) {
        launch->error = std::current_exception();
      }
    });
  };
  return enqueue(submit, std::move(guard), name, value);
}

std::shared_ptr<Fence> Lane::launch_copy(const EmulatedCopy& copy, Guard guard, std::uint32_t name,
                                         std::int64_t value) {
  const auto submit = [&](const std::shared_ptr<Launch>&) { backend_->emulate_copy(stream_, copy); };
  return enqueue(submit, std::move(guard), name, value);
}

std::shared_ptr<Fence> Lane::enqueue(const std::function<void(const std::shared_ptr<Launch>&)>& submit, Guard guard,
                                     std::uint32_t name, std::int64_t value) {
  collect();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) throw std::logic_error("found a launch on a closed lane; expected an open one");
  }
  auto launch = std::make_shared<Launch>();
  launch->guard = std::move(guard);
  mark(name, MarkKind::kBegin, value);
  submit(launch);
  mark(name, MarkKind::kEnd, value);
  launch->event = pool_.take();
  backend_->record(launch->event, stream_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++counts_.launched;
    ++counts_.open_fences;
  }
  auto fence = std::make_shared<Fence>(shared_from_this(), launch);
  // On a worker thread `error` may be read only after the event has passed; then the fence's wait will throw it.
  const bool ran_here = !own_stream_ || backend_->memory_is_stream_ordered();
  if (ran_here && launch->error) {
    const std::exception_ptr error = std::exchange(launch->error, nullptr);
    fence.reset();  // what the work did launch may still read the guard: retire it behind the event
    std::rethrow_exception(error);
  }
  return fence;
}

void Lane::retire(EventHandle event, std::shared_ptr<Launch> launch) {
  const std::lock_guard<std::mutex> lock(mutex_);
  retired_.push_back({event, std::move(launch)});
}

std::size_t Lane::collect() {
  std::vector<Retired> passed;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Retired> rest;
    for (Retired& entry : retired_) (backend_->passed(entry.event) ? passed : rest).push_back(std::move(entry));
    retired_.swap(rest);
  }
  return release(std::move(passed));
}

// Outside the lock: dropping a guard runs the owner's code.
std::size_t Lane::release(std::vector<Retired> retired) {
  std::exception_ptr first;
  for (Retired& entry : retired) {
    pool_.give(entry.event);
    entry.launch->guard.reset();
    if (entry.launch->error && !first) first = std::exchange(entry.launch->error, nullptr);
  }
  if (first) std::rethrow_exception(first);
  return retired.size();
}

// See NOTE [ what a fence owns ], 5.
void Lane::finish(bool wait) {
  std::vector<Retired> retired;
  bool first = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    first = !std::exchange(closed_, true);
    retired.swap(retired_);
  }
  if (first && own_stream_) backend_->destroy_stream(stream_, wait);
  for (Retired& entry : retired) {
    if (wait) {
      backend_->host_wait(entry.event);
    } else if (!backend_->passed(entry.event)) {
      new Guard(std::move(entry.launch->guard));  // never freed, and meant so
    }
  }
  pool_.close();
  release(std::move(retired));
}

LaneCounts Lane::counts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  LaneCounts counts = counts_;
  counts.guards_held = counts.open_fences + retired_.size();
  counts.events_alive = pool_.alive();
  counts.events_in_use = pool_.in_use();
  return counts;
}

Fence::Fence(std::shared_ptr<Lane> lane, std::shared_ptr<Launch> launch)
    : lane_(std::move(lane)), launch_(std::move(launch)) {}

Fence::~Fence() {
  if (!launch_) return;
  const EventHandle event = launch_->event;
  lane_->retire(event, std::move(launch_));
  const std::lock_guard<std::mutex> lock(lane_->mutex_);
  ++lane_->counts_.abandoned;
  --lane_->counts_.open_fences;
}

EventHandle Fence::armed_event() const {
  if (!launch_) throw std::logic_error("found a fence that was already waited for; expected one wait per fence");
  return launch_->event;
}

bool Fence::passed() const { return !launch_ || lane_->backend_->passed(launch_->event); }

void Fence::rethrow_error() {
  if (launch_->error) std::rethrow_exception(std::exchange(launch_->error, nullptr));
}

void Fence::host_wait() {
  lane_->backend_->host_wait(armed_event());
  rethrow_error();
}

void Fence::wait(StreamHandle consumer, bool keep) {
  const EventHandle event = armed_event();
  Backend& backend = *lane_->backend_;
  backend.stream_wait(consumer, event);
  if (keep) return;
  std::shared_ptr<Launch> launch = std::move(launch_);
  {
    const std::lock_guard<std::mutex> lock(lane_->mutex_);
    ++lane_->counts_.waited;
    --lane_->counts_.open_fences;
  }
  const bool passed = backend.passed(event);
  if (!passed && !backend.memory_is_stream_ordered()) {
    // The event is free again (the wait above has taken its place in the consumer's queue); watch the consumer instead.
    backend.record(event, consumer);
    return lane_->retire(event, std::move(launch));
  }
  lane_->pool_.give(event);
  launch->guard.reset();
  if (passed && launch->error) std::rethrow_exception(std::exchange(launch->error, nullptr));
}

}  // namespace overlap_recompute
