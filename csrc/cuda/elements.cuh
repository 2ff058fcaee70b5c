// Element types in memory, and their conversion to and from float.
#pragma once

#include "cuda/kernels.h"
#include "cuda/ptx.cuh"

namespace hrm {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ __forceinline__ float to_float(Float16 value) { return ptx::from_float16(value.bits); }

__device__ __forceinline__ void assign(float& to, float value) { to = value; }
__device__ __forceinline__ void assign(BFloat16& to, float value) {
  to.bits = static_cast<uint16_t>(ptx::to_bfloat16x2(value, value));
}
__device__ __forceinline__ void assign(Float16& to, float value) {
  to.bits = static_cast<uint16_t>(ptx::to_float16x2(value, value));
}

// Consecutive elements, loaded and stored by one instruction if they have 16 bytes at most.
template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T values[kWidth];
};

// Calls body with an element of type `dtype`, one of hrm_dtype.
template <typename Body>
const char* with_type(int32_t dtype, Body body) {
  switch (dtype) {
    case HRM_FLOAT32: return body(float());
    case HRM_BFLOAT16: return body(BFloat16());
    case HRM_FLOAT16: return body(Float16());
    default: return "it supports float32, bfloat16 and float16";
  }
}

}  // namespace hrm
