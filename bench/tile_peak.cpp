// The most that one core can do in bfloat16 and int8: AMX tiles, and vdpbf16ps. bench/tiles.py builds one function at a
// time, with the flag its instruction needs, and runs it on every core at once.
//
// The tile functions compute C[32, 32] += A[32, K] B[K, 32] with 2 x 2 accumulators: per step two tiles of A, two of B,
// four products. They return their operations. A tile is 16 rows of 64 bytes.
#include <immintrin.h>

#include <cstdint>

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Whether this process may use tiles: the kernel has to be asked once (Linux 5.16 and later, arch_prctl
// ARCH_REQ_XCOMP_PERM 0x1023 for the tile data, state component 18).
extern "C" int tiles_allowed() {
#ifdef __linux__
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return 0;
#endif
}

#if defined(__AMX_BF16__) || defined(__AMX_INT8__)
constexpr int kTileBytes = 16 * 64;
#ifdef __AMX_INT8__
constexpr double kOperations = 2.0 * 16 * 16 * 64;  // of one product of two tiles
#define PRODUCT _tile_dpbssd
#else
constexpr double kOperations = 2.0 * 16 * 16 * 32;
#define PRODUCT _tile_dpbf16ps
#endif

// Palette 1, eight tiles of 16 rows of 64 bytes, all zero.
static void configure() {
  alignas(64) uint8_t config[64] = {1};
  for (int tile = 0; tile < 8; ++tile) {
    config[16 + 2 * tile] = 64;
    config[48 + tile] = 16;
  }
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

#define PRODUCTS()  \
  PRODUCT(0, 4, 6); \
  PRODUCT(1, 4, 7); \
  PRODUCT(2, 5, 6); \
  PRODUCT(3, 5, 7)

// Operands stay in registers.
extern "C" double tiles_in_registers(long iterations) {
  configure();
  for (long n = 0; n < iterations; ++n) {
    PRODUCTS();
  }
  _tile_release();
  return 4 * kOperations * iterations;
}

// Operands come from memory: each of `panels` panels of B, [K, 32] with K in `steps` tiles, meets each of `blocks`
// blocks of A, [32, K]. `a` has blocks * steps * 2 tiles, `b` has panels * steps * 2 tiles. The sizes decide from which
// cache they come: one panel and one block stay in L1, many panels are streamed from L3.
extern "C" double tiles_from_memory(long iterations, const char* a, const char* b, long blocks, long panels, long steps,
                                    char* c) {
  configure();
  for (long n = 0; n < iterations; ++n) {
    for (long panel = 0; panel < panels; ++panel) {
      for (long block = 0; block < blocks; ++block) {
        const char* left = a + block * steps * 2 * kTileBytes;
        const char* right = b + panel * steps * 2 * kTileBytes;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (long step = 0; step < steps; ++step, left += 2 * kTileBytes, right += 2 * kTileBytes) {
          _tile_loadd(4, left, 64);
          _tile_loadd(6, right, 64);
          _tile_loadd(5, left + kTileBytes, 64);
          _tile_loadd(7, right + kTileBytes, 64);
          PRODUCTS();
        }
        _tile_stored(0, c, 64);
        _tile_stored(1, c + kTileBytes, 64);
        _tile_stored(2, c + 2 * kTileBytes, 64);
        _tile_stored(3, c + 3 * kTileBytes, 64);
      }
    }
  }
  _tile_release();
  return 4 * kOperations * steps * blocks * panels * iterations;
}
#endif

#ifdef __AVX512BF16__
// Twelve independent chains of vdpbf16ps: 16 sums of two products each.
extern "C" double dot_products(long iterations, float* sink) {
  constexpr int kChains = 12;
  __m512 chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512bh left = (__m512bh)_mm512_set1_epi16(0x3f80), right = (__m512bh)_mm512_set1_epi16(0x3c00);
  for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) chains[i] = _mm512_dpbf16_ps(chains[i], left, right);
  }
  for (int i = 0; i < kChains; ++i) *sink += _mm512_cvtss_f32(chains[i]);
  return 4.0 * 16 * kChains * iterations;
}
#endif
