// The CUDA implementation of streams and events, over the runtime library alone (no driver library, no torch).
#include <cuda_runtime.h>

#include <cmath>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "device/backend.h"
#include "device/cuda_check.h"
#include "link/paced_copy.h"

namespace overlap_recompute {
namespace {

cudaStream_t stream_of(StreamHandle handle) { return reinterpret_cast<cudaStream_t>(handle); }
cudaEvent_t event_of(EventHandle handle) { return reinterpret_cast<cudaEvent_t>(handle); }

// NOTE [ streams are used again ]
// torch's allocator keeps memory by stream. What a lane has released serves the next lane on the same stream alone, and
// where segments expand the allocator waits for their stream before it gives them back, though the lane may be long gone.
// So streams live as long as the process, as those of torch's own pools do.
struct IdleStreams {
  std::mutex mutex;
  std::map<std::pair<int, int>, std::vector<cudaStream_t>> of;  // by device and priority
};

IdleStreams& idle_streams() {
  static auto* const idle = new IdleStreams;  // never destroyed: a lane may outlive what is static
  return *idle;
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(int device) : device_(device) {}

  StreamHandle create_stream(Priority priority) override {
    const DeviceScope scope(device_);
    int lowest = 0, highest = 0;
    ORC_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    const int level = priority == Priority::kLowest ? lowest : highest;
    {
      const std::lock_guard<std::mutex> lock(idle_streams().mutex);
      std::vector<cudaStream_t>& idle = idle_streams().of[{device_, level}];
      if (!idle.empty()) {
        const cudaStream_t found = idle.back();
        idle.pop_back();
        return reinterpret_cast<StreamHandle>(found);
      }
    }
    cudaStream_t stream = nullptr;
    ORC_CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, level));
    return reinterpret_cast<StreamHandle>(stream);
  }

  void destroy_stream(StreamHandle stream, bool wait) override {
    const DeviceScope scope(device_);
    if (wait) ORC_CUDA_CHECK(cudaStreamSynchronize(stream_of(stream)));
    int level = 0;
    ORC_CUDA_CHECK(cudaStreamGetPriority(stream_of(stream), &level));
    const std::lock_guard<std::mutex> lock(idle_streams().mutex);
    idle_streams().of[{device_, level}].push_back(stream_of(stream));
  }

  EventHandle create_event(bool timed) override {
    const DeviceScope scope(device_);
    cudaEvent_t event = nullptr;
    ORC_CUDA_CHECK(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
    return reinterpret_cast<EventHandle>(event);
  }

  void destroy_event(EventHandle event) override {
    const DeviceScope scope(device_);
    ORC_CUDA_CHECK(cudaEventDestroy(event_of(event)));
  }

  void record(EventHandle event, StreamHandle stream) override {
    const DeviceScope scope(device_);
    ORC_CUDA_CHECK(cudaEventRecord(event_of(event), stream_of(stream)));
  }

  void stream_wait(StreamHandle stream, EventHandle event) override {
    const DeviceScope scope(device_);
    ORC_CUDA_CHECK(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0));
  }

  // With the scope also where it looks idle: a thread that has set no device would make a context on the first one.
  bool passed(EventHandle event) override {
    const DeviceScope scope(device_);
    const cudaError_t status = cudaEventQuery(event_of(event));
    if (status == cudaErrorNotReady) {
      cudaGetLastError();
      return false;
    }
    ORC_CUDA_CHECK(status);
    return true;
  }

  void host_wait(EventHandle event) override {
    const DeviceScope scope(device_);
    ORC_CUDA_CHECK(cudaEventSynchronize(event_of(event)));
  }

  std::int64_t time_ns(EventHandle event, const Anchor& anchor) override {
    const DeviceScope scope(device_);
    float milliseconds = 0.0f;
    ORC_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, event_of(anchor.event), event_of(event)));
    return anchor.host_ns + std::llround(static_cast<double>(milliseconds) * 1e6);
  }

  void submit(StreamHandle, std::function<void()> task) override { task(); }

  void emulate_copy(StreamHandle stream, const EmulatedCopy& copy) override {
    const DeviceScope scope(device_);
    launch_paced_copy(copy, stream_of(stream));
  }

  bool memory_is_stream_ordered() const override { return true; }
  bool runs_inline(StreamHandle) const override { return false; }

 private:
  const int device_;
};

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver, or no device: not an error here, and not to be seen by the next call
  return 0;
}

std::shared_ptr<Backend> make_cuda_backend(int device) { return std::make_shared<CudaBackend>(device); }

}  // namespace overlap_recompute
