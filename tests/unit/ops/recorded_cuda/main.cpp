// The lane on a CUDA runtime that writes down what it is told; prints the log, one scene after the other, for
// test_recorded_cuda.py to compare. Devices 0 and 1; a call for an event or stream of another device is an error.
#include <cuda_runtime.h>

#include <cstdio>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "lane/lane.h"
#include "link/paced_copy.h"

namespace {

struct Known {
  std::string name;
  int device, priority;
};

int current_device = 1, made = 0;
bool passed = false, failing = false;
std::map<const void*, Known> streams, events;
cudaError_t last_error = cudaSuccess;

template <class Handle>
Handle add(std::map<const void*, Known>& known, const char* kind, int priority) {
  auto* handle = reinterpret_cast<Handle>(new int);
  known[handle] = {kind + std::to_string(++made), current_device, priority};
  return handle;
}

std::string name_of(cudaStream_t stream) {
  if (stream == nullptr) return "compute";
  const Known& known = streams.at(stream);
  return known.device == current_device ? known.name : known.name + " ON THE WRONG DEVICE";
}

std::string name_of(cudaEvent_t event) {
  const Known& known = events.at(event);
  return known.device == current_device ? known.name : known.name + " ON THE WRONG DEVICE";
}

cudaError_t say(const std::string& what) {
  std::printf("%s\n", what.c_str());
  return last_error = failing ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace

cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return current_device = device, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 2, cudaSuccess; }
cudaError_t cudaGetLastError() {
  const cudaError_t found = last_error;
  return last_error = cudaSuccess, found;
}
const char* cudaGetErrorString(cudaError_t) { return "told to fail"; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* lowest, int* highest) {
  return *lowest = 0, *highest = -5, cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  *stream = add<cudaStream_t>(streams, "stream", priority);
  return say("create " + name_of(*stream) + " priority " + std::to_string(priority));
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  return *priority = streams.at(stream).priority, cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return say("synchronize " + name_of(stream)); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return say("destroy " + name_of(stream)); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = add<cudaEvent_t>(events, "event", 0), cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { return say("destroy " + name_of(event)); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return say("record " + name_of(event) + " on " + name_of(stream));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return say(name_of(stream) + " waits for " + name_of(event));
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  name_of(event);
  return last_error = passed ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return say("host waits for " + name_of(event)); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return *milliseconds = 0, cudaSuccess;
}

namespace overlap_recompute {

// Not part of these scenes, and not linked.
void launch_paced_copy(const EmulatedCopy&, cudaStream_t) {}
void StreamMarks::mark(StreamHandle, std::uint32_t, std::uint32_t, std::int64_t) {}
ThreadRing* EventRing::own_ring() { return nullptr; }
std::int64_t monotonic_ns() { return 0; }

namespace {

Guard guard(const char* name) {
  return {new std::string(name), [](void* held) {
            auto* text = static_cast<std::string*>(held);
            std::printf("free %s\n", text->c_str());
            delete text;
          }};
}

std::shared_ptr<Lane> lane_on(int device, Priority priority = Priority::kLowest) {
  return std::make_shared<Lane>(make_cuda_backend(device), true, priority, nullptr);
}

void run() { std::printf("work on device %d\n", current_device); }

void scene(const char* name) { std::printf("# %s\n", name); }

void waited() {
  scene("waited");
  const auto lane = lane_on(0);
  lane->open_window(0, 0);
  const auto fence = lane->launch(run, guard("argument"), 0, 0);
  fence->wait(0, true);
  fence->wait(0, false);
  lane->close();
}

void abandoned() {
  scene("abandoned");
  const auto lane = lane_on(0);
  lane->launch(run, guard("argument"), 0, 0).reset();
  lane->collect();
  std::printf("error left: %d\n", last_error != cudaSuccess);
  passed = true;
  lane->collect();
  passed = false;
  lane->close();
}

void failed() {
  scene("failed");
  const auto lane = lane_on(0);
  try {
    lane->launch([] { throw std::runtime_error("unit"); }, guard("argument"), 0, 0);
  } catch (const std::runtime_error& error) {
    std::printf("raised %s\n", error.what());
  }
  failing = true;
  try {
    lane->open_window(0, 0);
  } catch (const std::runtime_error& error) {
    std::printf("raised %.30s\n", error.what());
  }
  failing = false;
  passed = true;
  lane->close();
  passed = false;
}

void again() {
  scene("again");
  const StreamHandle first = lane_on(0)->stream();  // dropped, not closed
  const auto second = lane_on(0), third = lane_on(0), other = lane_on(1), link = lane_on(0, Priority::kHighest);
  std::printf("same stream: %d\n", first == second->stream());
  passed = true;
}

}  // namespace
}  // namespace overlap_recompute

int main() {
  overlap_recompute::waited();
  overlap_recompute::abandoned();
  overlap_recompute::failed();
  overlap_recompute::again();
  std::printf("# end\ndevice %d\n", current_device);
}
