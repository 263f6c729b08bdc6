// Turns a CUDA error into an exception that names the call and the place; makes a device current for a scope.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define ORC_CUDA_CHECK(call) ::overlap_recompute::cuda_check((call), #call, ORC_FILE, __LINE__)

// The name of the file, not the builder's directory.
#if defined(__FILE_NAME__)
#define ORC_FILE __FILE_NAME__
#else
#define ORC_FILE __FILE__
#endif

namespace overlap_recompute {

inline void cuda_check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, unless it is sticky
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(status) + " (" + file + ":" +
                           std::to_string(line) + ")");
}

// Makes `device` current for a scope.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    ORC_CUDA_CHECK(cudaGetDevice(&previous_));
    if (device != previous_) ORC_CUDA_CHECK(cudaSetDevice(device));
    changed_ = device != previous_;
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  ~DeviceScope() {
    if (changed_) cudaSetDevice(previous_);
  }

 private:
  int previous_ = 0;
  bool changed_ = false;
};

}  // namespace overlap_recompute
