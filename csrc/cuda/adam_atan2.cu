// A step of AdamATan2 for all parameters in one launch. It moves 28 bytes per float32 element, and 2 more with a
// bfloat16 copy; nothing else takes time.
//
// The addresses are the kernel's argument, by value, so nothing is copied to the device first, and a CUDA graph stores
// them. Arguments are limited to 4 KB, so one launch takes 64 parameters, more than any published model has; the
// launcher makes as many launches as needed.
#include <cmath>

#include "cuda/elements.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace hrm::adam {

constexpr int kMost = 64;  // parameters per launch
constexpr int kThreads = 256;
constexpr int kWidth = 4;                      // elements per thread and iteration
constexpr int kChunk = 4 * kWidth * kThreads;  // elements per thread block
static_assert((kMost & (kMost - 1)) == 0, "parameter_of divides it by two");

// The factors of a parameter whose count is on the host.
struct Factors {
  float size, inverse_root;
};

// Chunks are numbered across all parameters; those of parameter i begin at first[i].
struct Step {
  void *p[kMost], *m[kMost], *v[kMost], *copy[kMost];
  const void* g[kMost];
  int64_t numel[kMost];
  union {
    float* count;     // number of previous steps, on the device: with `arrived`
    Factors factors;  // else
  } state[kMost];
  int32_t first[kMost];
  int32_t parameters, copy_dtype;
  float gain1, beta2, gain2, keep;
  float lr, weight_decay, log_beta1, log_beta2;  // used for counts on the device
  const float* device_lr;                        // replaces lr
  unsigned* arrived;  // number of thread blocks that have read their count; 0 before and after the launch
};
static_assert(sizeof(Step) <= 4096, "limit of kernel arguments");

// Returns the last parameter that begins at or before the chunk, by binary search.
__device__ __forceinline__ int parameter_of(const Step& s, int chunk) {
  int i = 0;
#pragma unroll
  for (int half = kMost / 2; half > 0; half /= 2) {
    if (i + half < s.parameters && s.first[i + half] <= chunk) i += half;
  }
  return i;
}

// Adds 1 to all counts after every thread block has read its count: the last block to arrive does it.
__device__ void advance(const Step& s) {
  auto* last = reinterpret_cast<int*>(shared_memory());
  __syncthreads();  // all threads of the block have read the count
  if (threadIdx.x == 0) {
    __threadfence();
    *last = atomicAdd(s.arrived, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (*last) {
    for (int i = threadIdx.x; i < s.parameters; i += kThreads) *s.state[i].count += 1;
    if (threadIdx.x == 0) *s.arrived = 0;
  }
}

// Updates elements at ... at + kElements - 1 of parameter i.
template <typename T, int kElements>
__device__ __forceinline__ void update(const Step& s, int i, int64_t at, Factors factors, float keep) {
  using Elements = Pack<T, kElements>;
  auto* p = reinterpret_cast<Elements*>(static_cast<T*>(s.p[i]) + at);
  auto* m = reinterpret_cast<Elements*>(static_cast<T*>(s.m[i]) + at);
  auto* v = reinterpret_cast<Elements*>(static_cast<T*>(s.v[i]) + at);
  const Elements gradient = *reinterpret_cast<const Elements*>(static_cast<const T*>(s.g[i]) + at);
  Elements value = *p, mean = *m, square = *v;
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const float g = to_float(gradient.values[e]);
    const float old_mean = to_float(mean.values[e]);
    const float new_mean = old_mean + s.gain1 * (g - old_mean);
    const float new_square = to_float(square.values[e]) * s.beta2 + s.gain2 * g * g;
    assign(mean.values[e], new_mean);
    assign(square.values[e], new_square);
    const float angle = atan2f(new_mean, sqrtf(new_square) * factors.inverse_root);
    assign(value.values[e], to_float(value.values[e]) * keep - factors.size * angle);
  }
  *m = mean;
  *v = square;
  *p = value;
  const auto write_copy = [&](auto type) {
    using Copy = decltype(type);
    Pack<Copy, kElements> copy;
#pragma unroll
    for (int e = 0; e < kElements; ++e) assign(copy.values[e], to_float(value.values[e]));
    *reinterpret_cast<Pack<Copy, kElements>*>(static_cast<Copy*>(s.copy[i]) + at) = copy;
  };
  switch (s.copy_dtype) {
    case HRM_FLOAT32: write_copy(float()); break;
    case HRM_BFLOAT16: write_copy(BFloat16()); break;
    case HRM_FLOAT16: write_copy(Float16()); break;
    default: break;
  }
}

// A thread block updates chunk blockIdx.x, each thread kWidth elements per iteration:
// m += gain1 (g - m); v = beta2 v + gain2 g²; p = keep p - size atan2(m, sqrt(v) inverse_root);
// copy = p.
template <typename T>
__global__ void __launch_bounds__(kThreads) adam_atan2_kernel(const __grid_constant__ Step s) {
  const int chunk = static_cast<int>(blockIdx.x), i = parameter_of(s, chunk);
  Factors factors;
  float keep = s.keep;
  if (!s.arrived) {
    factors = s.state[i].factors;
  } else {
    // 1 - beta^t with two roundings for every t: expm1 has no cancellation
    const float count = *s.state[i].count + 1, lr = s.device_lr ? *s.device_lr : s.lr;
    factors.size = lr / -expm1f(count * s.log_beta1);
    factors.inverse_root = 1 / sqrtf(-expm1f(count * s.log_beta2));
    keep = 1 - lr * s.weight_decay;
    advance(s);
  }
  const int64_t start = static_cast<int64_t>(chunk - s.first[i]) * kChunk, numel = s.numel[i];
  const auto address = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  const uintptr_t addresses = address(s.p[i]) | address(s.g[i]) | address(s.m[i]) | address(s.v[i]);
  const bool aligned = addresses % (kWidth * sizeof(T)) == 0 && address(s.copy[i]) % (kWidth * sizeof(float)) == 0;
  if (aligned && start + kChunk <= numel) {
#pragma unroll 1
    for (int at = kWidth * threadIdx.x; at < kChunk; at += kWidth * kThreads) {
      update<T, kWidth>(s, i, start + at, factors, keep);
    }
  } else {
    const int64_t end = start + kChunk < numel ? start + kChunk : numel;
#pragma unroll 1
    for (int64_t at = start + threadIdx.x; at < end; at += kThreads) update<T, 1>(s, i, at, factors, keep);
  }
}

}  // namespace hrm::adam

const char* hrm_cuda_adam_atan2(const hrm_adam_atan2* problem, void* stream) {
  using namespace hrm::adam;
  for (int64_t begin = 0; begin < problem->count; begin += kMost) {
    Step s{};
    const int64_t left = problem->count - begin;
    s.parameters = static_cast<int32_t>(left < kMost ? left : kMost);
    int64_t chunks = 0;
    for (int i = 0; i < s.parameters; ++i) {
      const hrm_adam_parameter& parameter = problem->parameters[begin + i];
      s.p[i] = parameter.p;
      s.g[i] = parameter.g;
      s.m[i] = parameter.m;
      s.v[i] = parameter.v;
      s.copy[i] = parameter.copy;
      s.numel[i] = parameter.numel;
      s.first[i] = static_cast<int32_t>(chunks);
      chunks += (parameter.numel + kChunk - 1) / kChunk;
      if (chunks >= int64_t{1} << 31) return "the parameters have more than 2^43 elements";
      if (problem->arrived) {
        s.state[i].count = parameter.count;
      } else {
        const double t = *parameter.count + 1.0;
        s.state[i].factors = {static_cast<float>(problem->lr / (1 - std::pow(problem->beta1, t))),
                              static_cast<float>(1 / std::sqrt(1 - std::pow(problem->beta2, t)))};
      }
    }
    s.copy_dtype = problem->copy_dtype;
    s.gain1 = static_cast<float>(1 - problem->beta1);
    s.beta2 = static_cast<float>(problem->beta2);
    s.gain2 = static_cast<float>(1 - problem->beta2);
    s.keep = static_cast<float>(1 - problem->lr * problem->weight_decay);
    s.lr = static_cast<float>(problem->lr);
    s.weight_decay = static_cast<float>(problem->weight_decay);
    s.log_beta1 = static_cast<float>(std::log(problem->beta1));  // -infinity for beta = 0, so beta^t is 0
    s.log_beta2 = static_cast<float>(std::log(problem->beta2));
    s.device_lr = problem->device_lr;
    s.arrived = problem->arrived;
    if (chunks == 0) {
      if (!problem->arrived) continue;
      chunks = 1;  // empty parameters count their steps too
    }
    const char* failure = hrm::with_type(problem->dtype, [&](auto type) {
      return hrm::launch(adam_atan2_kernel<decltype(type)>, dim3(static_cast<unsigned>(chunks)), kThreads, sizeof(int),
                         false, stream, s);
    });
    if (failure) return failure;
  }
  return nullptr;
}
