// Dynamic shared memory and launches of all kernels.
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

// Launches kernel(parameters). A cooperative launch fails unless all thread blocks fit on the device at the same time.
// From sm_90 on, `cluster` consecutive blocks form a cluster, with access to each other's shared memory and a barrier.
template <typename Parameters>
const char* launch(void (*kernel)(Parameters), dim3 grid, unsigned threads, size_t shared_bytes, bool cooperative,
                   void* stream, const Parameters& parameters, unsigned cluster = 1) {
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, parameters);
  if (error == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());  // clear it: the caller gets it here, later calls must not
  return cudaGetErrorString(error);
}

}  // namespace hrm
