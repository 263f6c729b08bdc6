#include "trace/stream_marks.h"

#include <set>
#include <utility>

namespace overlap_recompute {

StreamMarks::StreamMarks(std::shared_ptr<EventRing> ring, std::shared_ptr<Backend> backend, StreamHandle stream,
                         std::size_t capacity)
    : ring_(std::move(ring)), backend_(std::move(backend)), capacity_(capacity), pool_(backend_, /*timed=*/true) {
  anchor_.event = pool_.take();
  backend_->record(anchor_.event, stream);
  backend_->host_wait(anchor_.event);
  anchor_.host_ns = monotonic_ns();
}

StreamMarks::~StreamMarks() {
  for (const Pending& entry : pending_) pool_.give(entry.event);
  pool_.give(anchor_.event);
}

void StreamMarks::mark(StreamHandle stream, std::uint32_t name, std::uint32_t kind, std::int64_t value) {
  const std::uint32_t thread = ring_->own_thread();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (pending_.size() >= capacity_) {
      ++dropped_;
      return;
    }
  }
  const EventHandle event = pool_.take();
  backend_->record(event, stream);
  const std::lock_guard<std::mutex> lock(mutex_);
  pending_.push_back({event, {0, value, stream, name, thread, kind}});
}

std::vector<Mark> StreamMarks::drain() {
  std::vector<Mark> marks;
  const std::lock_guard<std::mutex> lock(mutex_);
  Anchor newest = anchor_;
  std::deque<Pending> still_running;
  std::set<StreamHandle> waiting;  // a stream may go on while this looks: its marks come in their order all the same
  for (Pending& entry : pending_) {
    if (waiting.count(entry.mark.stream) != 0 || !backend_->passed(entry.event)) {
      waiting.insert(entry.mark.stream);
      still_running.push_back(entry);
      continue;
    }
    entry.mark.time_ns = backend_->time_ns(entry.event, anchor_);
    marks.push_back(entry.mark);
    const bool later = entry.mark.time_ns >= newest.host_ns;
    const EventHandle spent = later ? newest.event : entry.event;
    if (later) newest = {entry.event, entry.mark.time_ns};
    if (spent != anchor_.event) pool_.give(spent);
  }
  if (newest.event != anchor_.event) {
    pool_.give(anchor_.event);
    anchor_ = newest;
  }
  pending_.swap(still_running);
  sort_by_time(&marks);
  return marks;
}

std::size_t StreamMarks::pending() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return pending_.size();
}

std::uint64_t StreamMarks::dropped() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return dropped_;
}

}  // namespace overlap_recompute
