// The most multiply-adds that one core can do. bench/fma.py builds this if there is a compiler, and runs it on every
// core at once.
//
// The chains are independent, enough to hide the latency (4 cycles) of two units, and stay in registers.
#if defined(__AVX512F__)
typedef float Vector __attribute__((vector_size(64)));
#else
typedef float Vector __attribute__((vector_size(32)));
#endif

constexpr int kChains = 12;

// Runs `iterations` rounds of all chains and returns their floating-point operations; `sink` keeps the results alive.
extern "C" double fma_peak(long iterations, float factor, float* sink) {
  Vector chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = Vector{} + static_cast<float>(i);
  const Vector times = Vector{} + factor, plus = Vector{} + 0.25f;
  for (long n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) chains[i] = chains[i] * times + plus;
  }
  for (int i = 0; i < kChains; ++i) *sink += chains[i][0];
  return 2.0 * kChains * (sizeof(Vector) / sizeof(float)) * iterations;
}
