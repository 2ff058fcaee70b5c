// The bfloat16 instructions of x86, AMX and AVX512-BF16, and the same arithmetic in plain C++ for other machines.
//
// Both instructions multiply pairs: an operand holds, per lane, two consecutive elements of the inner dimension. Each
// multiply-add rounds once to float32; denormal inputs and results are zero (Intel's manual, TDPBF16PS and VDPBF16PS).
// In plain C++ a multiply-add may be two operations: the product of two bfloat16 numbers is exact in float32, unless
// it overflows or is denormal.
#pragma once

#include "cpu/element.h"

namespace hrm::HRM_ISA {

// kLanes pairs of elements.
HRM_INLINE BitVec load_pairs(const BFloat16* from) {
  BitVec pairs;
  std::memcpy(&pairs, from, sizeof pairs);
  return pairs;
}
HRM_INLINE void store_pairs(BFloat16* to, BitVec pairs) { std::memcpy(to, &pairs, sizeof pairs); }

// The pairs (even[i], odd[i]); nullptr: zeros.
HRM_INLINE BitVec pair(const BFloat16* even, const BFloat16* odd) {
  HalfVec low{}, high{};
  if (even) std::memcpy(&low, even, sizeof low);
  if (odd) std::memcpy(&high, odd, sizeof high);
  return __builtin_convertvector(low, BitVec) | __builtin_convertvector(high, BitVec) << 16;
}

HRM_INLINE Vec as_floats(BitVec bits) {
  Vec result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
HRM_INLINE BitVec as_bits(Vec value) {
  BitVec bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
HRM_INLINE BitVec flushed(BitVec bits) { return (bits & 0x7f800000) != 0 ? bits : bits & 0x80000000; }
HRM_INLINE Vec flushed(Vec value) { return as_floats(flushed(as_bits(value))); }
HRM_INLINE Vec even_elements(BitVec pairs) { return as_floats(flushed(pairs << 16)); }
HRM_INLINE Vec odd_elements(BitVec pairs) { return as_floats(flushed(pairs & 0xffff0000)); }

// sum + a[odd] * b[odd] + a[even] * b[even], in this order
HRM_INLINE Vec dot(Vec sum, BitVec a, BitVec b) {
#if defined(__AVX512BF16__)
  __m512 total;
  __m512bh left, right;
  std::memcpy(&total, &sum, sizeof total);
  std::memcpy(&left, &a, sizeof left);
  std::memcpy(&right, &b, sizeof right);
  total = _mm512_dpbf16_ps(total, right, left);
  std::memcpy(&sum, &total, sizeof sum);
  return sum;
#else
  const Vec odd = flushed(flushed(sum) + odd_elements(a) * odd_elements(b));
  return flushed(odd + even_elements(a) * even_elements(b));
#endif
}

#if !defined(HRM_TILES)

struct TileScope {
  TileScope() {}
};

#else

constexpr int kTile = 16;  // rows of a tile register, each of 16 float32 sums or pairs
static_assert(kLanes == kTile && kTileRows == 2 * kTile);

#if defined(__AMX_BF16__)

// Configures the tile registers of this thread for its lifetime. While they are in use the system saves 8 KB more per
// context switch.
class TileScope {
 public:
  TileScope() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {kTile, kTile, kTile, kTile, kTile, kTile, kTile, kTile};
    } configuration;
    static_assert(sizeof configuration == 64);
    asm volatile("ldtilecfg %0" : : "m"(configuration));
  }
  ~TileScope() { asm volatile("tilerelease"); }
};

// GCC's intrinsics are macros that take only literal numbers of registers.
template <int Register>
HRM_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Register));
}
// 16 rows of 64 bytes, `stride` bytes apart
template <int Register>
HRM_INLINE void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Register) : "memory");
}
template <int Register>
HRM_INLINE void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Register) : "memory");
}
// sums[row][column] += (even products summed over 16 pairs) + (odd products)
template <int Sums, int Left, int Right>
HRM_INLINE void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Left), "i"(Right));
}

#else

inline thread_local BitVec tiles[8][kTile];

struct TileScope {
  TileScope() {}
};

template <int Register>
HRM_INLINE void tile_zero() {
  std::memset(tiles[Register], 0, sizeof tiles[Register]);
}
template <int Register>
HRM_INLINE void tile_load(const void* from, int64_t stride) {
  for (int row = 0; row < kTile; ++row) {
    std::memcpy(&tiles[Register][row], static_cast<const char*>(from) + row * stride, sizeof(BitVec));
  }
}
template <int Register>
HRM_INLINE void tile_store(void* to, int64_t stride) {
  for (int row = 0; row < kTile; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, &tiles[Register][row], sizeof(BitVec));
  }
}
__attribute__((noinline)) inline void tile_dot(BitVec (&sums)[kTile], const BitVec (&left)[kTile],
                                               const BitVec (&right)[kTile]) {
  for (int row = 0; row < kTile; ++row) {
    Vec even{}, odd{};
    for (int k = 0; k < kTile; ++k) {
      const BitVec factor = left[row][k] - BitVec{};
      even = flushed(even + even_elements(factor) * even_elements(right[k]));
      odd = flushed(odd + odd_elements(factor) * odd_elements(right[k]));
    }
    sums[row] = as_bits(flushed(flushed(as_floats(sums[row])) + flushed(even + odd)));
  }
}
template <int Sums, int Left, int Right>
HRM_INLINE void tile_dot() {
  tile_dot(tiles[Sums], tiles[Left], tiles[Right]);
}

#endif
#endif

}  // namespace hrm::HRM_ISA
