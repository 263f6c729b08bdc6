// The part of the CUDA runtime that torch calls, for a device whose memory is the host's. Kernels do nothing here:
// torch_ops.py computes what aten's operators would have launched.
#include <cuda_runtime_api.h>
#include <time.h>

#include <map>

#include "queues.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

using simulated::device;

constexpr size_t kMemoryBytes = size_t{16} << 30;

struct Event {
  unsigned long recorded = 0, done = 0;
  long at_ns = 0;
};
using EventHandle = std::shared_ptr<Event>;

const EventHandle& event(cudaEvent_t handle) { return *reinterpret_cast<EventHandle*>(handle); }

long now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000L + now.tv_nsec;
}

// Blocks of memory by address.
class Blocks {
 public:
  void add(void* start, size_t nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_[static_cast<char*>(start)] = nbytes;
    bytes_ += nbytes;
  }
  bool remove(void* start) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = blocks_.find(static_cast<char*>(start));
    if (found == blocks_.end()) return false;
    bytes_ -= found->second;
    blocks_.erase(found);
    return true;
  }
  bool has(const void* place) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto after = blocks_.upper_bound(static_cast<char*>(const_cast<void*>(place)));
    if (after == blocks_.begin()) return false;
    --after;
    return static_cast<const char*>(place) < after->first + after->second;
  }
  size_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

 private:
  std::mutex mutex_;
  std::map<char*, size_t> blocks_;
  size_t bytes_ = 0;
};

Blocks& on_device() {
  static auto* const blocks = new Blocks;
  return *blocks;
}
Blocks& pinned() {
  static auto* const blocks = new Blocks;
  return *blocks;
}
bool is_pageable(const void* place) { return !on_device().has(place) && !pinned().has(place); }

}  // namespace

// --- what torch_ops.py calls

API void simulated_gpu_enqueue(cudaStream_t stream, void (*run)(long), long job) {
  device().put(stream, [=] { run(job); });
  device().launched();
}
API void simulated_gpu_drain(cudaStream_t stream) { device().drain(stream); }

// --- the device

API cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
API cudaError_t cudaGetDevice(int* number) { return *number = 0, cudaSuccess; }
API cudaError_t cudaSetDevice(int) { return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
API cudaError_t cudaGetLastError() { return cudaSuccess; }
API cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
API const char* cudaGetErrorName(cudaError_t) { return "simulated"; }
API const char* cudaGetErrorString(cudaError_t) { return "an error of the simulated GPU"; }
API cudaError_t cudaDeviceGetPCIBusId(char* text, int room, int) { return std::strncpy(text, "0000:00:00.0", room), cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
  std::memset(found, 0, sizeof *found);
  std::strcpy(found->name, "simulated GPU (host memory)");
  found->totalGlobalMem = kMemoryBytes;
  found->major = 9;
  found->multiProcessorCount = 132;
  found->warpSize = 32;
  found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->maxThreadsPerMultiProcessor = 2048;
  found->maxBlocksPerMultiProcessor = 32;
  found->regsPerBlock = found->regsPerMultiprocessor = 1 << 16;
  found->sharedMemPerBlock = 48 << 10;
  found->sharedMemPerBlockOptin = found->sharedMemPerMultiprocessor = 227 << 10;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->textureAlignment = 512;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  static const std::map<int, int> known = {
      {cudaDevAttrMultiProcessorCount, 132},     {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10}, {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048}, {cudaDevAttrMaxThreadsPerBlock, 1024}};
  const auto found = known.find(which);
  return *value = found == known.end() ? 1 : found->second, cudaSuccess;
}

// --- memory: new blocks hold 0xFF, which is NaN in every floating-point type

API cudaError_t cudaMalloc(void** start, size_t nbytes) {
  if (on_device().bytes() + nbytes > kMemoryBytes) return cudaErrorMemoryAllocation;
  if (posix_memalign(start, 512, std::max<size_t>(nbytes, 1))) return cudaErrorMemoryAllocation;
  std::memset(*start, 0xFF, nbytes);
  return on_device().add(*start, nbytes), cudaSuccess;
}
API cudaError_t cudaFree(void* start) {
  if (!start) return cudaSuccess;
  device().drain();
  if (on_device().remove(start)) std::free(start);
  return cudaSuccess;
}
API cudaError_t cudaHostAlloc(void** start, size_t nbytes, unsigned) {
  if (posix_memalign(start, 4096, std::max<size_t>(nbytes, 1))) return cudaErrorMemoryAllocation;
  return pinned().add(*start, nbytes), cudaSuccess;
}
API cudaError_t cudaFreeHost(void* start) {
  if (pinned().remove(start)) std::free(start);
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
  *total = kMemoryBytes;
  return *left = kMemoryBytes - on_device().bytes(), cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* place) {
  std::memset(found, 0, sizeof *found);
  found->type = on_device().has(place) ? cudaMemoryTypeDevice
                : pinned().has(place)  ? cudaMemoryTypeHost
                                       : cudaMemoryTypeUnregistered;
  found->devicePointer = found->hostPointer = const_cast<void*>(place);
  return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t nbytes, cudaMemcpyKind, cudaStream_t stream) {
  device().put(stream, [=] { std::memmove(to, from, nbytes); });
  if (is_pageable(to) || is_pageable(from)) device().drain(stream);
  return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t nbytes, cudaMemcpyKind kind) {
  cudaMemcpyAsync(to, from, nbytes, kind, nullptr);
  return device().drain(nullptr), cudaSuccess;
}
API cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                  size_t height, cudaMemcpyKind, cudaStream_t stream) {
  device().put(stream, [=] {
    for (size_t row = 0; row < height; row++)
      std::memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
  });
  if (is_pageable(to) || is_pageable(from)) device().drain(stream);
  return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void* to, int value, size_t nbytes, cudaStream_t stream) {
  return device().put(stream, [=] { std::memset(to, value, nbytes); }), cudaSuccess;
}
API cudaError_t cudaMemset(void* to, int value, size_t nbytes) {
  cudaMemsetAsync(to, value, nbytes, nullptr);
  return device().drain(nullptr), cudaSuccess;
}

// --- streams and events

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* made, unsigned, int priority) {
  return *made = reinterpret_cast<cudaStream_t>(device().make(priority)), cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned flags) {
  return cudaStreamCreateWithPriority(made, flags, 0);
}
API cudaError_t cudaStreamCreate(cudaStream_t* made) { return cudaStreamCreateWithPriority(made, 0, 0); }
API cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  return *priority = device().stream(stream)->priority, cudaSuccess;
}
API cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return device().idle(device().stream(stream)) ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return device().drain(stream), cudaSuccess; }
API cudaError_t cudaDeviceSynchronize() { return device().drain(), cudaSuccess; }
API cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* number,
                                         cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  if (number) *number = 0;
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned) {
  const EventHandle one = event(handle);
  const unsigned long number = one->recorded;
  return device().put(stream, [] {}, [=] { return one->done >= number; }), cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t run, void* data) {
  return device().put(stream, [=] { run(data); }), cudaSuccess;
}
API cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t run, void* data, unsigned) {
  return device().put(stream, [=] { run(stream, cudaSuccess, data); }), cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* made, unsigned) {
  return *made = reinterpret_cast<cudaEvent_t>(new EventHandle(std::make_shared<Event>())), cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* made) { return cudaEventCreateWithFlags(made, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  return delete reinterpret_cast<EventHandle*>(handle), cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
  const EventHandle one = event(handle);
  const unsigned long number = ++one->recorded;
  device().put(stream, [=] { one->done = number, one->at_ns = now_ns(); });
  return cudaSuccess;
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned) {
  return cudaEventRecord(handle, stream);
}
API cudaError_t cudaEventQuery(cudaEvent_t handle) {
  return event(handle)->done >= event(handle)->recorded ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  const EventHandle one = event(handle);
  const unsigned long number = one->recorded;
  return device().drain([=] { return one->done >= number; }, nullptr), cudaSuccess;
}
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end) {
  return *ms = static_cast<float>(event(end)->at_ns - event(begin)->at_ns) / 1e6f, cudaSuccess;
}
