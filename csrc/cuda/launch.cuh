// What all kernels share: their dynamic shared memory, and how they are launched.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace hrm {

__device__ __forceinline__ unsigned char* shared_memory() {
#ifdef HRM_SIMT
  return simt::shared_memory();
#else
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
#endif
}

// Launches kernel(parameters). Cooperative: all blocks are on the device at the same time, or the launch fails.
template <typename Parameters>
const char* launch(void (*kernel)(Parameters), dim3 grid, unsigned threads, size_t shared_bytes, bool cooperative,
                   void* stream, const Parameters& parameters) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, parameters);
  if (error == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());  // the caller hears of it here: no later call should again
  return cudaGetErrorString(error);
}

}  // namespace hrm
