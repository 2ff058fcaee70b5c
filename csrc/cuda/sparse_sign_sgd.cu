// A step of SparseSignSGD in one launch: the device finds repeated identifiers.
#include "cuda/elements.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace hrm::sparse_sign {

constexpr int kThreads = 128;
constexpr int kColumns = 4;  // per lane, 32 apart: a warp reads 128 consecutive bytes at any alignment of rows
constexpr int kWarpColumns = 32 * kColumns;

struct Step {
  hrm_sparse_sign_sgd problem;

  __device__ __forceinline__ int64_t id(int64_t n) const {
    return problem.wide_ids ? static_cast<const int64_t*>(problem.ids)[n] : static_cast<const int32_t*>(problem.ids)[n];
  }
};

// A warp updates kWarpColumns columns of the row of identifier n = blockIdx.x. Only warps of an identifier's first
// occurrence go on: they iterate over all occurrences, sum their gradients in order, and write the row.
template <typename T>
__global__ void __launch_bounds__(kThreads) sparse_sign_sgd_kernel(const __grid_constant__ Step s) {
  const hrm_sparse_sign_sgd& problem = s.problem;
  const int64_t n = blockIdx.x, D = problem.columns;
  const int lane = threadIdx.x % 32;
  const int64_t first = (static_cast<int64_t>(blockIdx.y) * (kThreads / 32) + threadIdx.x / 32) * kWarpColumns + lane;
  const int64_t id = s.id(n);
  if (id < 0 || id >= problem.table_rows) return;  // not a row; the look-up has reported it
  bool earlier = false;
#pragma unroll 4
  for (int64_t m = lane; m < n; m += 32) earlier |= s.id(m) == id;
  if (__any_sync(0xffffffffu, earlier)) return;

  float sum[kColumns] = {};
#pragma unroll 2
  for (int64_t start = n; start < problem.rows; start += 32) {
    unsigned same = __ballot_sync(0xffffffffu, start + lane < problem.rows && s.id(start + lane) == id);
    for (; same; same &= same - 1) {
      const T* row = static_cast<const T*>(problem.grads) + (start + __ffs(static_cast<int>(same)) - 1) * D;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (first + 32 * c < D) sum[c] += to_float(row[first + 32 * c]);
      }
    }
  }
  const float lr = problem.device_lr ? *problem.device_lr : problem.lr;
  const float keep = problem.device_lr ? 1 - lr * problem.weight_decay : problem.keep;
  T* row = static_cast<T*>(problem.weights) + id * D;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    if (first + 32 * c >= D) continue;
    const float sign = sum[c] > 0 ? lr : sum[c] < 0 ? -lr : 0;
    assign(row[first + 32 * c], to_float(row[first + 32 * c]) * keep - sign);
  }
}

}  // namespace hrm::sparse_sign

const char* hrm_cuda_sparse_sign_sgd(const hrm_sparse_sign_sgd* problem, void* stream) {
  using namespace hrm::sparse_sign;
  if (problem->rows == 0 || problem->columns == 0) return nullptr;
  constexpr int64_t kBlockColumns = kThreads / 32 * kWarpColumns;
  const int64_t blocks = (problem->columns + kBlockColumns - 1) / kBlockColumns;
  if (problem->rows >= int64_t{1} << 31 || blocks > 65535) return "it supports up to 2^31 rows of 2^25 columns";
  return hrm::with_type(problem->dtype, [&](auto type) {
    return hrm::launch(sparse_sign_sgd_kernel<decltype(type)>,
                       dim3(static_cast<unsigned>(problem->rows), static_cast<unsigned>(blocks)), kThreads, 0, false,
                       stream, Step{*problem});
  });
}
