// The element types of matrices: float32 and bfloat16, and Element, that of the kernels' own matrices.
#pragma once

#include "cpu/vec.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace hrm::HRM_ISA {

struct BFloat16 {
  uint16_t bits;
};

HRM_INLINE float to_float(float value) { return value; }
HRM_INLINE float to_float(BFloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

HRM_INLINE void assign(float& to, float value) { to = value; }
HRM_INLINE void assign(BFloat16& to, float value) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

// The same for kLanes consecutive elements.
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));
typedef uint32_t BitVec __attribute__((vector_size(4 * kLanes)));

HRM_INLINE Vec load(const BFloat16* from) {
  HalfVec half;
  std::memcpy(&half, from, sizeof half);
  BitVec bits;
#if defined(__AVX2__)
  if constexpr (kLanes == 8) {  // one instruction; GCC 12 makes five of the conversion below
    __m128i narrow;
    std::memcpy(&narrow, &half, sizeof narrow);
    const __m256i wide = _mm256_cvtepu16_epi32(narrow);
    std::memcpy(&bits, &wide, sizeof wide);
  } else
#endif
  {
    bits = __builtin_convertvector(half, BitVec);
  }
  bits <<= 16;
  Vec result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
HRM_INLINE void store(BFloat16* to, Vec value) {
#if defined(__AVX512BF16__)
  __m512 wide;
  std::memcpy(&wide, &value, sizeof wide);
  const __m256bh narrow = _mm512_cvtneps_pbh(wide);
  std::memcpy(to, &narrow, sizeof narrow);
#else
  BitVec bits;
  std::memcpy(&bits, &value, sizeof bits);
#if defined(HRM_PAIRS)  // as vcvtneps2bf16: denormal numbers become zero
  bits = (bits & 0x7f800000) != 0 ? bits : bits & 0x80000000;
#endif
  const BitVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const BitVec result = (bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded;
  const HalfVec half = __builtin_convertvector(result, HalfVec);
  std::memcpy(to, &half, sizeof half);
#endif
}

// The type of intermediate matrices and packed weights. Kernels with bfloat16 elements take bfloat16 arguments only;
// the others take both types.
#if defined(HRM_PAIRS)
using Element = BFloat16;
#else
using Element = float;
#endif

// Calls with(T{}) for the element type that `dtype` names.
template <class With>
HRM_INLINE void with_type(int dtype, With with) {
#if defined(HRM_PAIRS)
  (void)dtype;
  with(BFloat16{});
#else
  if (dtype == 0) {
    with(float{});
  } else {
    with(BFloat16{});
  }
#endif
}

// The number of floats whose memory holds this number of elements.
constexpr int64_t floats_for(int64_t elements) {
  return elements * static_cast<int64_t>(sizeof(Element)) / static_cast<int64_t>(sizeof(float));
}

}  // namespace hrm::HRM_ISA
