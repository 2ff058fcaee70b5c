// Stablemax cross entropy of many tokens: loss, argmax and gradient. Each pass reads the logits once.
//
// With a = 1 + |x|, s(x) is a or 1/a and s'(x) is 1 or 1/a². Two methods make float32 as exact as float64:
// - loss = log1p(others / s_label), where others is the sum of s over all columns but the label. So a dominant label
//   (loss near 0) causes no cancellation. Its gradient, -s'_label others / (total s_label), is a product for the same
//   reason.
// - Sums are compensated: they keep the rounding error of each addition.
#include <type_traits>

#include "cuda/elements.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace hrm::stablemax {

constexpr int kThreads = 256;
constexpr int kRoundColumns = 8;  // per thread, before a row gets more threads

// A compensated sum: its value and its rounding error.
struct Sum {
  float value = 0, rest = 0;

  __device__ __forceinline__ void add(float x) {  // Knuth's two-sum: value + x and its exact error
    const float sum = value + x, part = sum - value;
    rest += (value - (sum - part)) + (x - part);
    value = sum;
  }
  __device__ __forceinline__ void add(Sum other) {
    add(other.value);
    rest += other.rest;
  }
};

// A logit and its column.
struct Largest {
  float value;
  int column;

  __device__ __forceinline__ void take(Largest other) {
    if (other.value > value || (other.value == value && other.column < column)) *this = other;
  }
};

constexpr int kNoColumn = 0x7fffffff;

// The partial result of a warp.
struct Partial {
  Sum others;
  Largest largest;
};
constexpr int kSharedBytes = kThreads / 32 * static_cast<int>(sizeof(Partial));

struct Tokens {
  hrm_stablemax problem;

  __device__ __forceinline__ int64_t label(int64_t row) const {
    return problem.wide_labels ? static_cast<const int64_t*>(problem.labels)[row]
                               : static_cast<const int32_t*>(problem.labels)[row];
  }
};

__device__ __forceinline__ float stablemax(float x) {
  const float a = 1 + fabsf(x);
  return x < 0 ? 1 / a : a;
}

// A thread block computes loss, total, others and argmax of 256 / kLanes rows; kLanes threads iterate over the columns
// of a row. NaN is never the largest, but makes the loss NaN, as does a label that is not a column. If a row has
// several warps, they combine their partial results in shared memory.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads) stablemax_forward_kernel(const __grid_constant__ Tokens t) {
  const hrm_stablemax& problem = t.problem;
  const int V = problem.columns, lane = threadIdx.x % kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  const bool inside = row < problem.rows;
  const T* x = static_cast<const T*>(problem.logits) + (inside ? row * V : 0);
  const int64_t label = inside ? t.label(row) : -1;
  const float label_logit = label >= 0 && label < V ? to_float(x[label]) : NAN;
  Sum others;
  Largest largest{-INFINITY, lane < V ? lane : kNoColumn};
  if (inside) {
#pragma unroll 4
    for (int v = lane; v < V; v += kLanes) {
      const float value = to_float(x[v]);
      others.add(v == label ? 0.0f : stablemax(value));
      largest.take({value, v});
    }
  }
#pragma unroll
  for (int apart = (kLanes < 32 ? kLanes : 32) / 2; apart > 0; apart /= 2) {
    others.add(
        Sum{__shfl_xor_sync(0xffffffffu, others.value, apart), __shfl_xor_sync(0xffffffffu, others.rest, apart)});
    largest.take(
        {__shfl_xor_sync(0xffffffffu, largest.value, apart), __shfl_xor_sync(0xffffffffu, largest.column, apart)});
  }
  if constexpr (kLanes > 32) {
    auto* partial = reinterpret_cast<Partial*>(shared_memory());
    if (lane % 32 == 0) partial[lane / 32] = {others, largest};
    __syncthreads();
    for (int warp = 1; warp < kLanes / 32; ++warp) {  // thread 0 belongs to warp 0
      others.add(partial[warp].others);
      largest.take(partial[warp].largest);
    }
  }
  if (lane || !inside) return;
  const float other = others.value + others.rest;
  const float s = stablemax(label_logit);
  problem.loss[row] = label != problem.ignore_index ? log1pf(other / s) : 0;
  problem.total[row] = other + s;
  problem.others[row] = other;
  if (problem.argmax) problem.argmax[row] = largest.column;
}

// A thread block computes dlogits = dloss (s'/total - [v = label] s'/s) of 256 / kLanes rows and part blockIdx.y of the
// columns; kLanes threads iterate over the columns of a row.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kThreads) stablemax_backward_kernel(const __grid_constant__ Tokens t) {
  const hrm_stablemax& problem = t.problem;
  const int V = problem.columns, lane = threadIdx.x % kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (row >= problem.rows) return;
  const int64_t label = t.label(row);
  const bool counted = label != problem.ignore_index;
  const float dloss = counted ? problem.dloss[row] : 0, total = problem.total[row];
  const float inverse = 1 / total, share = problem.others[row] / total;
  const T* x = static_cast<const T*>(problem.logits) + row * V;
  T* dx = static_cast<T*>(problem.dlogits) + row * V;
  const int begin = static_cast<int>(blockIdx.y) * kLanes * kRoundColumns;
  const int end = begin + kLanes * kRoundColumns < V ? begin + kLanes * kRoundColumns : V;
#pragma unroll 4
  for (int v = begin + lane; v < end; v += kLanes) {
    const float value = to_float(x[v]);
    const float r = 1 / (1 + fabsf(value)), root = value < 0 ? r : 1;  // the root of s', because s' could underflow
    const float gradient = v == label ? -r * share : root * (root * inverse);  // s'/s is r on both sides of 0
    assign(dx[v], counted ? gradient * dloss : 0);
  }
}

// Selects the threads per row: at most a few columns for each, and at least one for most.
template <typename Body>
const char* with_lanes(int columns, Body body) {
  if (columns <= 8 * kRoundColumns) return body(std::integral_constant<int, 8>());
  if (columns <= 32 * 4 * kRoundColumns) return body(std::integral_constant<int, 32>());
  return body(std::integral_constant<int, kThreads>());
}

const char* too_large(const hrm_stablemax& problem) {
  return problem.rows >= int64_t{1} << 31 || problem.columns > 1 << 24 ? "it supports up to 2^31 tokens of 2^24 columns"
                                                                       : nullptr;
}

unsigned divide_up(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace hrm::stablemax

const char* hrm_cuda_stablemax_forward(const hrm_stablemax* problem, void* stream) {
  using namespace hrm::stablemax;
  if (problem->rows == 0) return nullptr;
  if (const char* reason = too_large(*problem)) return reason;
  return hrm::with_type(problem->dtype, [&](auto type) {
    return with_lanes(problem->columns, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::value;
      return hrm::launch(stablemax_forward_kernel<decltype(type), kLanes>,
                         dim3(divide_up(problem->rows, kThreads / kLanes)), kThreads, kSharedBytes, false, stream,
                         Tokens{*problem});
    });
  });
}

const char* hrm_cuda_stablemax_backward(const hrm_stablemax* problem, void* stream) {
  using namespace hrm::stablemax;
  if (problem->rows == 0) return nullptr;
  if (const char* reason = too_large(*problem)) return reason;
  return hrm::with_type(problem->dtype, [&](auto type) {
    return with_lanes(problem->columns, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::value;
      const dim3 grid(divide_up(problem->rows, kThreads / kLanes), divide_up(problem->columns, kLanes * kRoundColumns));
      return hrm::launch(stablemax_backward_kernel<decltype(type), kLanes>, grid, kThreads, 0, false, stream,
                         Tokens{*problem});
    });
  });
}
