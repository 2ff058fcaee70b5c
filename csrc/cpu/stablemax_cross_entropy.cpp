// -log(s(x[label]) / sum(s(x))), s(x) = x + 1 for x >= 0 and 1 / (1 - x + 1e-30) below, in double precision.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/tables.h"

namespace hrm::HRM_ISA {
namespace {

HRM_INLINE double s(double x) { return x >= 0 ? x + 1 : 1 / (1 - x + 1e-30); }
HRM_INLINE double ds(double x) { return x >= 0 ? 1 : 1 / ((1 - x + 1e-30) * (1 - x + 1e-30)); }

constexpr int64_t kElements = 1 << 12;  // per task

// others: the sum of s over all columns but the label. Kept separate from the label's s, so that a loss near 0 keeps
// its digits.
void forward(int64_t rows, int64_t vocabulary, const void* logits, const int64_t* labels, int64_t ignore_index,
             float* loss, double* others, int64_t* argmax, int dtype, int threads) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for_row_blocks(threads, rows, vocabulary, kElements, [&](int64_t row) {
      const T* x = static_cast<const T*>(logits) + row * vocabulary;
      const int64_t label = labels[row];
      double total = 0;
      int64_t best = 0;
      for (int64_t i = 0; i < vocabulary; ++i) {
        const float value = to_float(x[i]);
        if (i != label) total += s(value);
        if (value > to_float(x[best])) best = i;
      }
      if (argmax) argmax[row] = best;
      others[row] = total;
      loss[row] = label == ignore_index ? 0.0f : static_cast<float>(std::log1p(total / s(to_float(x[label]))));
    });
  });
}

void backward(int64_t rows, int64_t vocabulary, const float* dloss, const void* logits, const int64_t* labels,
              int64_t ignore_index, const double* others, void* dlogits, int dtype, int threads) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for_row_blocks(threads, rows, vocabulary, kElements, [&](int64_t row) {
      const T* x = static_cast<const T*>(logits) + row * vocabulary;
      T* dx = static_cast<T*>(dlogits) + row * vocabulary;
      const int64_t label = labels[row];
      if (label == ignore_index) {
        for (int64_t i = 0; i < vocabulary; ++i) assign(dx[i], 0.0f);
        return;
      }
      const double own = s(to_float(x[label])), total = others[row] + own, d = dloss[row];
      for (int64_t i = 0; i < vocabulary; ++i) {
        const double slope = i == label ? -others[row] / (total * own) : 1 / total;
        assign(dx[i], static_cast<float>(d * slope * ds(to_float(x[i]))));
      }
    });
  });
}

}  // namespace

void add_stablemax(hrm_cpu_kernels& table) {
  table.stablemax_forward = forward;
  table.stablemax_backward = backward;
}

}  // namespace hrm::HRM_ISA
