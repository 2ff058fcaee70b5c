// A register of floats, in the vector extensions of GCC and Clang: compiler flags turn the same source into AVX-512,
// AVX2, SSE or NEON. CMakeLists.txt compiles every kernel once per instruction set; HRM_ISA is its name.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#define HRM_ALWAYS __attribute__((always_inline))  // after a lambda's parameters
#define HRM_INLINE inline HRM_ALWAYS

namespace hrm::HRM_ISA {

#if defined(HRM_LANES)  // sizes that CMakeLists.txt sets
constexpr int kLanes = HRM_LANES, kTileRows = HRM_TILE_ROWS;
#elif defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 12;  // 24 accumulators, 2 columns of weights, broadcasts from memory: 26 of 32
#elif defined(__AVX2__)
constexpr int kLanes = 8, kTileRows = 6;  // 12 accumulators, 2 columns of weights, 1 broadcast: 15 of 16 registers
#elif defined(__aarch64__)
constexpr int kLanes = 4, kTileRows = 10;  // 20 accumulators, 2 columns of weights, broadcasts: below 32 registers
#else
constexpr int kLanes = 4, kTileRows = 6;
#endif
constexpr int kRowGrain = kTileRows > 16 ? kTileRows / 2 : kTileRows;  // tasks divide rows into multiples of it
constexpr int kWidth = 2 * kLanes;                                     // columns of a panel (panels.h)

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

HRM_INLINE Vec load(const float* from) {  // at any address
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
HRM_INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
HRM_INLINE Vec all(float value) { return value - Vec{}; }

HRM_INLINE float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}
HRM_INLINE float largest(Vec v) {
  float most = v[0];
  for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}
HRM_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

// Lanes of two registers in the order of indices; lanes of b follow those of a.
template <int... Indices>
HRM_INLINE Vec shuffle(Vec a, Vec b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, Indices...);
#else
  return __builtin_shuffle(a, b, IntVec{Indices...});
#endif
}

// Swaps the off-diagonal quarters of every square of 2 * Half rows and lanes.
template <int Half, size_t... Lane>
HRM_INLINE void exchange(Vec (&rows)[kLanes], std::index_sequence<Lane...>) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Half) continue;
    const Vec a = rows[i], b = rows[i + Half];
    rows[i] = shuffle<(Lane & Half ? kLanes - Half : 0) + static_cast<int>(Lane)...>(a, b);
    rows[i + Half] = shuffle<(Lane & Half ? kLanes : Half) + static_cast<int>(Lane)...>(a, b);
  }
}
HRM_INLINE void transpose(Vec (&rows)[kLanes]) {
  constexpr auto lanes = std::make_index_sequence<kLanes>{};
  if constexpr (kLanes > 8) exchange<8>(rows, lanes);
  if constexpr (kLanes > 4) exchange<4>(rows, lanes);
  exchange<2>(rows, lanes);
  exchange<1>(rows, lanes);
}

// e^x to 2 ulp. 0 below -87.3 (the limit of float32), at most 2.4e38; NaN stays NaN.
HRM_INLINE Vec exp(Vec x) {
  const Vec low = all(-87.3f), high = all(88.3f);
  const Vec clamped = x > high ? high : x;
  // x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Vec shift = all(12582912.0f);
  const Vec shifted = clamped * 1.44269504088896341f + shift;
  const Vec n = shifted - shift;
  const Vec r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts, the first exact times n
  // Minimax polynomial, from Cephes' expf. Pairs of its terms do not wait for each other.
  const Vec square = r * r;
  Vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * square + (8.3334519073e-3f * r + 4.1665795894e-2f);
  p = p * square + (1.6666665459e-1f * r + 5.0000001201e-1f);
  p = p * square + r + 1.0f;
  IntVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000;  // 2^n: the integer's low bits become the exponent
  Vec power;
  std::memcpy(&power, &bits, sizeof power);
  return x < low ? Vec{} : p * power;
}

HRM_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace hrm::HRM_ISA
