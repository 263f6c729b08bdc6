// What else torch calls: kernels, which do nothing; the driver's and cuBLAS's answers that it looks at; NCCL for one rank.
#include <cuda_runtime_api.h>

#include "queues.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

int primary_context_state(int, unsigned* flags, int* active) { return *flags = 0, *active = 1, 0; }
int no_text(int, const char** text) { return *text = "simulated", 0; }
int success() { return 0; }

void* handle() { return std::malloc(64); }

// Bytes of an element, by ncclDataType_t.
size_t width(int type) {
  static const size_t widths[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return widths[type];
}

// Of one rank: every collective copies.
int copy(const void* from, void* to, size_t count, int type, cudaStream_t stream) {
  if (from != to) simulated::device().put(stream, [=] { std::memmove(to, from, count * width(type)); });
  return 0;
}

}  // namespace

API void** __cudaRegisterFatBinary(void*) {
  static void* binary[1];
  return binary;
}
API unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 0; }
API cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
API cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  std::memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->binaryVersion = found->ptxVersion = 90;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return *blocks = 1, cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  return *blocks = 1, cudaSuccess;
}
API cudaError_t cudaGetSymbolAddress(void** place, const void*) {
  static char room[1 << 16];
  return *place = room, cudaSuccess;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* result) {
  const std::string wanted = name;
  *found = wanted == "cuDevicePrimaryCtxGetState" ? reinterpret_cast<void*>(primary_context_state)
           : wanted == "cuGetErrorString"         ? reinterpret_cast<void*>(no_text)
                                                  : reinterpret_cast<void*>(success);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

API int cublasCreate_v2(void** made) { return *made = handle(), 0; }
API int cublasLtCreate(void** made) { return *made = handle(), 0; }
API int cublasGetVersion_v2(void*, int* version) { return *version = 130000, 0; }
API int cublasGetMathMode(void*, int* mode) { return *mode = 0, 0; }
API int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0, 0; }

API int ncclGetVersion(int* version) { return *version = 22800, 0; }
API const char* ncclGetErrorString(int) { return "simulated"; }
API const char* ncclGetLastError(void*) { return "simulated"; }
struct NcclId {
  char bytes[128];
};
API int ncclCommInitRank(void** made, int, NcclId, int) { return *made = handle(), 0; }
API int ncclCommInitRankConfig(void** made, int, NcclId, int, void*) { return *made = handle(), 0; }
API int ncclCommInitRankScalable(void** made, int, int, int, void*, void*) { return *made = handle(), 0; }
API int ncclCommSplit(void*, int, int, void** made, void*) { return *made = handle(), 0; }
API int ncclCommGetAsyncError(void*, int* error) { return *error = 0, 0; }
API int ncclAllReduce(const void* from, void* to, size_t count, int type, int, void*, cudaStream_t stream) {
  return copy(from, to, count, type, stream);
}
API int ncclAllGather(const void* from, void* to, size_t count, int type, void*, cudaStream_t stream) {
  return copy(from, to, count, type, stream);
}
API int ncclReduceScatter(const void* from, void* to, size_t count, int type, int, void*, cudaStream_t stream) {
  return copy(from, to, count, type, stream);
}
API int ncclBroadcast(const void* from, void* to, size_t count, int type, int, void*, cudaStream_t stream) {
  return copy(from, to, count, type, stream);
}
API int ncclReduce(const void* from, void* to, size_t count, int type, int, int, void*, cudaStream_t stream) {
  return copy(from, to, count, type, stream);
}
