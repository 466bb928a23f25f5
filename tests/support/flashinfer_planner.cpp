// The host half of FlashInfer's planner behind a C interface, built where there is no CUDA.
//
// The library's headers name a handful of CUDA's types and functions; those below stand for them. Of a device they
// say what `plan` was told. Built by flashinfer_planner.py with empty files in the place of CUDA's headers.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <iostream>
#include <limits>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __grid_constant__

struct half {};
struct half2 {};
struct __nv_bfloat16 {};
struct int2 { int x, y; };
struct dim3 { unsigned x, y = 1, z = 1; dim3(unsigned x = 1) : x(x) {} };
struct cudaDeviceProp { int multiProcessorCount; };
struct cudaLaunchConfig_t { dim3 gridDim, blockDim; };
using cudaError_t = int;
using cudaStream_t = void*;
enum { cudaSuccess, cudaErrorInvalidValue, cudaErrorNotSupported };
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum {
  cudaDevAttrMultiProcessorCount, cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMaxSharedMemoryPerMultiprocessor, ATTRIBUTES
};

static int device_attributes[ATTRIBUTES];

inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int) {
  *value = device_attributes[attribute];
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp*, int) { return cudaErrorNotSupported; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
template <typename... T> cudaError_t cudaOccupancyMaxPotentialClusterSize(T...) { return cudaErrorNotSupported; }
template <typename... T> cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(T...) {
  return cudaErrorNotSupported;
}
using std::max;
using std::min;

// Of this header the planner needs the name of one type; the rest is code for a device.
#define FLASHINFER_POS_ENC_CUH_
namespace flashinfer { enum class PosEncodingMode { kNone }; }

#include "flashinfer/attention/scheduler.cuh"

struct Sizes {
  int32_t multiprocessors, major, shared_bytes;
  int32_t rows, requests, q_heads, kv_heads, head_dim, page_size, causal;
};

static std::vector<int64_t> plan(const Sizes& s, bool fa3, size_t float_bytes, void* device, void* pinned,
                                 size_t int_bytes, int32_t* row_offsets, int32_t* page_offsets, int32_t* lengths) {
  void* scratch = reinterpret_cast<void*>(uintptr_t(1) << 40);  // aligned, and never written here
  const uint32_t dtype_bytes = 2;
  if (fa3) {
    flashinfer::PrefillPlanSM90Info info;
    flashinfer::PrefillSM90Plan(scratch, float_bytes, device, pinned, int_bytes, info, row_offsets, page_offsets,
                                lengths, s.rows, s.requests, s.q_heads, s.kv_heads, s.head_dim, s.head_dim,
                                s.page_size, s.causal, true, dtype_bytes, nullptr);
    return info.ToVector();
  }
  flashinfer::PrefillPlanInfo info;
  flashinfer::PrefillPlan(scratch, float_bytes, device, pinned, int_bytes, info, row_offsets, page_offsets, s.rows,
                          s.requests, s.q_heads, s.kv_heads, s.head_dim, s.head_dim, s.page_size, true, dtype_bytes,
                          /*window_left=*/-1, /*fixed_split_size=*/-1, /*disable_split_kv=*/false,
                          /*num_colocated_ctas=*/0,
#ifdef UNIFORM_Q_LEN
                          /*uniform_q_len=*/0,
#endif
                          nullptr);
  return info.ToVector();
}

// Fills `info` and returns its length; or -1, with what the library said in `error`.
extern "C" int flashinfer_plan(const Sizes* s, int fa3, size_t float_bytes, void* device, void* pinned,
                               size_t int_bytes, int32_t* row_offsets, int32_t* page_offsets, int32_t* lengths,
                               int64_t* info, char* error, size_t error_bytes) try {
  device_attributes[cudaDevAttrMultiProcessorCount] = s->multiprocessors;
  device_attributes[cudaDevAttrComputeCapabilityMajor] = s->major;
  device_attributes[cudaDevAttrMaxSharedMemoryPerBlockOptin] = s->shared_bytes;
  auto made = plan(*s, fa3, float_bytes, device, pinned, int_bytes, row_offsets, page_offsets, lengths);
  std::copy(made.begin(), made.end(), info);
  return int(made.size());
} catch (const std::exception& thrown) {
  std::strncpy(error, thrown.what(), error_bytes - 1);
  return -1;
}
