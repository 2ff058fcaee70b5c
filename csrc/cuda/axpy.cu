#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace hrm {

struct Axpy {
  float a;
  const float* x;
  float* y;
  int64_t n;
};

// Computes y += a x: each thread takes one element per iteration, with the stride of the grid.
__global__ void axpy_kernel(Axpy p) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.n; i += stride) {
    p.y[i] += p.a * p.x[i];
  }
}

}  // namespace hrm

const char* hrm_cuda_device_reason() {
  int blocks = 0;
  const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, hrm::axpy_kernel, 256, 0);
  if (error == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());
  return cudaGetErrorString(error);
}

const char* hrm_cuda_axpy(float a, const float* x, float* y, int64_t n, void* stream) {
  if (n == 0) return nullptr;
  const int64_t blocks = (n + 255) / 256;
  const auto grid = static_cast<unsigned>(blocks < 1024 ? blocks : 1024);
  return hrm::launch(hrm::axpy_kernel, dim3(grid), 256, 0, false, stream, hrm::Axpy{a, x, y, n});
}
