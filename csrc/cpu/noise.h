// Standard normal numbers from counters: the bits of Philox 4x32 with ten rounds, then Box and Muller's transform.
//
// hrm_kernels/noise.py is the definition: the key is the seed of a row, the counter (c, position, step, stream), and
// feature 64 q + 16 w + l is word w of the result for c = 16 q + l.
#pragma once

#include "cpu/element.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace hrm::HRM_ISA {

constexpr int kChunk = 64;  // features whose numbers are made together: 16 counters, four words each

// Products of even lanes: the low halves of 64-bit lanes. The results fill them.
typedef uint64_t WideVec __attribute__((vector_size(4 * kLanes)));
HRM_INLINE WideVec multiply_even(WideVec a, uint32_t factor) {
#if defined(__AVX512F__)  // with a mask of ones: GCC 12 warns of the plain one's undefined operand
  const __m512i factors = _mm512_set1_epi64(static_cast<int64_t>(factor));
  return reinterpret_cast<WideVec>(_mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), factors));
#elif defined(__AVX2__) && !defined(HRM_LANES)
  const __m256i factors = _mm256_set1_epi64x(static_cast<int64_t>(factor));
  return reinterpret_cast<WideVec>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), factors));
#elif defined(__SSE2__) && !defined(HRM_LANES)
  const __m128i factors = _mm_set1_epi64x(static_cast<int64_t>(factor));
  return reinterpret_cast<WideVec>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), factors));
#else
  return (a & 0xffffffff) * uint64_t{factor};
#endif
}

// The upper and lower 32 bits of a * factor.
HRM_INLINE void multiply(BitVec a, uint32_t factor, BitVec& high, BitVec& low) {
  const WideVec wide = reinterpret_cast<WideVec>(a);
  const WideVec even = multiply_even(wide, factor), odd = multiply_even(wide >> 32, factor);
  low = reinterpret_cast<BitVec>((even & 0xffffffff) | (odd << 32));
  high = reinterpret_cast<BitVec>((even >> 32) | (odd & 0xffffffff00000000));
}

HRM_INLINE void philox(BitVec (&words)[4], uint64_t seed) {
  uint32_t key = static_cast<uint32_t>(seed), other_key = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round, key += 0x9E3779B9, other_key += 0xBB67AE85) {
    BitVec high, low, other_high, other_low;
    multiply(words[0], 0xD2511F53, high, low);
    multiply(words[2], 0xCD9E8D57, other_high, other_low);
    words[0] = other_high ^ words[1] ^ key;
    words[1] = other_low;
    words[2] = high ^ words[3] ^ other_key;
    words[3] = low;
  }
}

HRM_INLINE Vec square_root(Vec x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__) && !defined(HRM_LANES)
  return reinterpret_cast<Vec>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#else
  Vec root;
  for (int i = 0; i < kLanes; ++i) root[i] = __builtin_sqrtf(x[i]);
  return root;
#endif
}

HRM_INLINE Vec as_vec(IntVec bits) { return reinterpret_cast<Vec>(bits); }

// ln x for normal x > 0, to 2 ulp (Cephes' logf).
HRM_INLINE Vec log(Vec x) {
  const IntVec bits = reinterpret_cast<IntVec>(x);
  const IntVec exponent = (bits >> 23) - 126;
  Vec m = as_vec((bits & 0x007fffff) | 0x3f000000);  // 0.5 to 1
  const IntVec small = m < all(0.707106781186547524f);
  m = (small ? m + m : m) - 1.0f;
  const Vec e = __builtin_convertvector(exponent + small, Vec), m2 = m * m;  // a true comparison is -1
  Vec p = all(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const Vec y = p * m * m2 - e * 2.12194440e-4f - 0.5f * m2;
  return m + y + e * 0.693359375f;
}

// The cosine and sine of 2 pi (y + 0.5) / 2^23, for 0 <= y < 2^23: of the nearest quarter turn, and the rest by
// polynomials for up to an eighth of a turn (Cephes' sinf and cosf).
HRM_INLINE void turn(IntVec y, Vec& cosine, Vec& sine) {
  const IntVec quarter = (y + (1 << 20)) >> 21;
  const Vec x = (__builtin_convertvector(y - (quarter << 21), Vec) + 0.5f) * (6.28318530717958648f / 8388608.0f);
  const Vec x2 = x * x;
  const Vec s = ((-1.9515295891e-4f * x2 + 8.3321608736e-3f) * x2 - 1.6666654611e-1f) * x2 * x + x;
  const Vec c =
      ((2.443315711809948e-5f * x2 - 1.388731625493765e-3f) * x2 + 4.166664568298827e-2f) * x2 * x2 - 0.5f * x2 + 1.0f;
  const IntVec swapped = (quarter & 1) != 0;
  const IntVec cosine_sign = ((quarter + 1) & 2) << 30, sine_sign = (quarter & 2) << 30;
  cosine = as_vec(reinterpret_cast<IntVec>(swapped ? s : c) ^ cosine_sign);
  sine = as_vec(reinterpret_cast<IntVec>(swapped ? c : s) ^ sine_sign);
}

// The numbers of features [64 chunk, 64 chunk + 64).
HRM_INLINE void normal_numbers(uint64_t seed, uint32_t step, uint32_t position, uint32_t stream, int64_t chunk,
                               float* to) {
  constexpr int kCounters = kChunk / 4;
  for (int first = 0; first < kCounters; first += kLanes) {
    BitVec words[4] = {BitVec{} + static_cast<uint32_t>(chunk * kCounters + first), BitVec{} + position,
                       BitVec{} + step, BitVec{} + stream};
    for (int lane = 0; lane < kLanes; ++lane) words[0][lane] += static_cast<uint32_t>(lane);
    philox(words, seed);
    for (int pair = 0; pair < 2; ++pair) {
      const IntVec u = reinterpret_cast<IntVec>(words[2 * pair] >> 9);
      const Vec uniform = (__builtin_convertvector(u, Vec) + 0.5f) * (1.0f / 8388608.0f);
      const Vec radius = square_root(-2.0f * log(uniform));
      Vec cosine, sine;
      turn(reinterpret_cast<IntVec>(words[2 * pair + 1] >> 9), cosine, sine);
      store(to + 2 * pair * kCounters + first, radius * cosine);
      store(to + (2 * pair + 1) * kCounters + first, radius * sine);
    }
  }
}

}  // namespace hrm::HRM_ISA
