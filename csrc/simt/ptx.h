// The functions of cuda/ptx.cuh, emulated.
#pragma once

#include <cuda_runtime.h>

namespace hrm::ptx {

namespace emulated {

inline float from_bfloat16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

// Uses arithmetic, because not all compilers have a float16 type.
inline float from_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  float magnitude = std::ldexp(static_cast<float>(fraction | (exponent ? 0x400 : 0)), (exponent ? exponent : 1) - 25);
  if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
  return bits >> 15 ? -magnitude : magnitude;
}

inline uint16_t to_float16(float value) {
  const uint32_t sign = __float_as_uint(value) >> 16 & 0x8000;
  const float magnitude = std::fabs(value);
  if (value != value) return 0x7fff;
  if (magnitude >= 65520) return static_cast<uint16_t>(sign | 0x7c00);  // rounds up to infinity
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  // in units of the last place, rounded to even; a carry to the next power of two increments the exponent
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<uint16_t>(sign | (static_cast<uint32_t>(exponent + 14) * 0x400 + units));
}

struct Ldmatrix {
  const void* row;
  uint32_t* result;
};

// Lanes 8 i ... 8 i + 7 pass the addresses of the rows of 8 x 8 matrix i; lane l gets elements 2 (l % 4), + 1 of row
// l / 4 of the matrix or its transpose.
template <bool kTransposed>
SIMT_UNCHECKED void ldmatrix(void* const* lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t rows[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(rows[r], static_cast<Ldmatrix*>(lanes[8 * matrix + r])->row, 16);
    for (int lane = 0; lane < 32; ++lane) {
      const int r = lane / 4, c = 2 * (lane % 4);
      const uint32_t low = kTransposed ? rows[c][r] : rows[r][c];
      const uint32_t high = kTransposed ? rows[c + 1][r] : rows[r][c + 1];
      static_cast<Ldmatrix*>(lanes[lane])->result[matrix] = low | high << 16;
    }
  }
}

struct Mma {
  float* d;
  const uint32_t *a, *b;
};

// Layout of the fragments: PTX ISA, "Matrix Fragments for mma.m16n8k16".
template <float (*kFrom)(uint16_t)>
void mma(void* const* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* own = static_cast<Mma*>(lanes[lane]);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half) {
        a[group + 8 * (i % 2)][pair + half + 8 * (i / 2)] = kFrom(static_cast<uint16_t>(own->a[i] >> 16 * half));
        if (i < 2) b[pair + half + 8 * i][group] = kFrom(static_cast<uint16_t>(own->b[i] >> 16 * half));
      }
    }
  }
  float d[16][8] = {};
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto* own = static_cast<Mma*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) own->d[i] += d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
  }
}

}  // namespace emulated

inline void copy_async_16(void* shared, const void* global, bool valid) {
  simt::check_shared("cp.async", shared, 16);
  if (reinterpret_cast<uintptr_t>(global) % 16) simt::fail("cp.async from a global address not aligned to 16");
  simt::start_copy(shared, valid ? global : nullptr);
}

inline void copy_async_commit() { simt::commit_copies(); }

template <int kPending>
inline void copy_async_wait() {
  simt::wait_for_copies(kPending);
}

inline void ldmatrix_x4(uint32_t (&result)[4], const void* row) {
  simt::check_shared("ldmatrix", row, 16);
  simt::race::access(simt::race::Access::read, row, 16);
  emulated::Ldmatrix arguments{row, result};
  simt::warp_collective("ldmatrix", &arguments, emulated::ldmatrix<false>);
}

inline void ldmatrix_x4_transposed(uint32_t (&result)[4], const void* row) {
  simt::check_shared("ldmatrix.trans", row, 16);
  simt::race::access(simt::race::Access::read, row, 16);
  emulated::Ldmatrix arguments{row, result};
  simt::warp_collective("ldmatrix.trans", &arguments, emulated::ldmatrix<true>);
}

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  emulated::Mma arguments{d, a, b};
  simt::warp_collective("mma.sync", &arguments, emulated::mma<emulated::from_bfloat16>);
}

inline void mma_m16n8k16_float16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  emulated::Mma arguments{d, a, b};
  simt::warp_collective("mma.sync of float16", &arguments, emulated::mma<emulated::from_float16>);
}

inline uint32_t to_bfloat16x2(float low, float high) {
  const auto round = [](float value) -> uint32_t {
    const uint32_t bits = __float_as_uint(value);
    if (value != value) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}

inline uint32_t to_float16x2(float low, float high) {
  return emulated::to_float16(low) | static_cast<uint32_t>(emulated::to_float16(high)) << 16;
}

inline float from_float16(uint16_t bits) { return emulated::from_float16(bits); }

SIMT_UNCHECKED inline void add_release(unsigned* address, unsigned value) {
  simt::race::access(simt::race::Access::atomic, address, sizeof *address);
  simt::race::release(reinterpret_cast<uintptr_t>(address));
  *address += value;
}

SIMT_UNCHECKED inline unsigned load_acquire(const unsigned* address) {
  simt::poll(address, *address);
  simt::race::access(simt::race::Access::atomic, address, sizeof *address);
  simt::race::acquire(reinterpret_cast<uintptr_t>(address));
  return *address;
}

inline unsigned cluster_rank() { return simt::self().rank; }

inline void cluster_arrive() {
  simt::warp_collective("barrier.cluster.arrive", nullptr, [](void* const*) {});
  simt::cluster_arrive();
}

inline void cluster_wait() {
  simt::warp_collective("barrier.cluster.wait", nullptr, [](void* const*) {});
  simt::cluster_wait();
}

template <typename T>
T* shared_of_block(T* shared, unsigned rank) {
  simt::check_shared("mapa", shared, sizeof(T));
  return static_cast<T*>(simt::shared_of_block(shared, rank));
}

}  // namespace hrm::ptx
