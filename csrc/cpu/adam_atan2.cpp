#include <cmath>

#include "cpu/kernels.h"
#include "cpu/panels.h"
#include "cpu/tables.h"
#include "cpu/team.h"

namespace hrm::HRM_ISA {
namespace {

constexpr int64_t kChunk = 1 << 14;  // elements per task

HRM_INLINE Vec sqrt(Vec x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int i = 0; i < kLanes; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
  return load(lanes);
}

// atan2(y, x) for x >= 0, with a relative error of 2e-7. The polynomial is that of atanf in Cephes, for arguments up to
// tan(pi / 8).
HRM_INLINE Vec atan2(Vec y, Vec x) {
  const Vec a = y < 0 ? -y : y;
  const Vec large = a > x ? a : x, small = a > x ? x : a;
  Vec ratio = small / (large == 0 ? all(1.0f) : large);
  ratio = (a == x) & (a > 0) ? all(1.0f) : ratio;  // also if both are infinite
  const auto beyond = ratio > 0.41421356237f;
  const Vec z = beyond ? (ratio - 1.0f) / (ratio + 1.0f) : ratio;
  const Vec w = z * z;
  const Vec odd = ((8.05374449538e-2f * w - 1.38776856032e-1f) * w + 1.99777106478e-1f) * w - 3.33329491539e-1f;
  Vec angle = odd * w * z + z + (beyond ? all(0.78539816339744831f) : Vec{});
  angle = a > x ? 1.5707963267948966f - angle : angle;
  return y < 0 ? -angle : y == y ? angle : y;
}

struct Step {
  float keep, gain1, beta2, gain2, size, inverse_root;

  HRM_INLINE void run(float* p, const float* g, float* m, float* v, BFloat16* copy) const {
    const Vec gradient = load(g);
    Vec mean = load(m);
    mean += gain1 * (gradient - mean);
    const Vec square = load(v) * beta2 + gain2 * gradient * gradient;
    const Vec now = load(p) * keep - size * atan2(mean, sqrt(square) * inverse_root);
    store(m, mean);
    store(v, square);
    store(p, now);
    if (copy) store(copy, now);
  }
};

void adam_atan2(int64_t count, float* const* params, const float* const* grads, float* const* exp_avgs,
                float* const* exp_avg_sqs, void* const* copies, const int64_t* sizes, const double* decay1,
                const double* decay2, double lr, double beta1, double beta2, double weight_decay, int threads) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += (sizes[i] + kChunk - 1) / kChunk;
  parallel(threads < total ? threads : static_cast<int>(total), [&](Team::Member& team) {
    team.for_each(total, [&](int64_t task) {
      int64_t i = 0;
      for (int64_t chunks; task >= (chunks = (sizes[i] + kChunk - 1) / kChunk); ++i) task -= chunks;
      const Step step{static_cast<float>(1 - lr * weight_decay),
                      static_cast<float>(1 - beta1),
                      static_cast<float>(beta2),
                      static_cast<float>(1 - beta2),
                      static_cast<float>(lr / decay1[i]),
                      static_cast<float>(1 / std::sqrt(decay2[i]))};
      float *p = params[i], *m = exp_avgs[i], *v = exp_avg_sqs[i];
      const float* g = grads[i];
      BFloat16* copy = copies ? static_cast<BFloat16*>(copies[i]) : nullptr;
      int64_t at = task * kChunk;
      const int64_t end = at + kChunk < sizes[i] ? at + kChunk : sizes[i];
      for (; at + kLanes <= end; at += kLanes) step.run(p + at, g + at, m + at, v + at, copy ? copy + at : nullptr);
      if (at < end) {  // the last elements, less than a register
        float lanes[4][kLanes] = {};
        BFloat16 copied[kLanes];
        const size_t bytes = static_cast<size_t>(end - at) * sizeof(float);
        std::memcpy(lanes[0], p + at, bytes);
        std::memcpy(lanes[1], g + at, bytes);
        std::memcpy(lanes[2], m + at, bytes);
        std::memcpy(lanes[3], v + at, bytes);
        step.run(lanes[0], lanes[1], lanes[2], lanes[3], copied);
        std::memcpy(p + at, lanes[0], bytes);
        std::memcpy(m + at, lanes[2], bytes);
        std::memcpy(v + at, lanes[3], bytes);
        if (copy) std::memcpy(copy + at, copied, bytes / 2);
      }
    });
  });
}

}  // namespace

void add_optimizers(hrm_cpu_kernels& table) { table.adam_atan2 = adam_atan2; }

}  // namespace hrm::HRM_ISA
