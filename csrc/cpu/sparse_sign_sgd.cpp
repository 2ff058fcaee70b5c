#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/kernels.h"

int64_t hrm_cpu_sparse_sign_sgd(float* weights, int64_t rows, int64_t columns, const int64_t* ids, const float* grads,
                                int64_t count, double lr, double weight_decay) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= rows) return i;
  }
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [ids](int64_t a, int64_t b) { return ids[a] < ids[b]; });
  const float keep = static_cast<float>(1 - lr * weight_decay), size = static_cast<float>(lr);
  std::vector<float> gradient(static_cast<size_t>(columns));
  for (size_t first = 0, end; first < order.size(); first = end) {
    const int64_t id = ids[order[first]];
    std::fill(gradient.begin(), gradient.end(), 0.0f);
    for (end = first; end < order.size() && ids[order[end]] == id; ++end) {
      const float* add = grads + order[end] * columns;
      for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += add[i];
    }
    float* row = weights + id * columns;
    for (size_t i = 0; i < gradient.size(); ++i) {
      const float g = gradient[i];
      const float sign = g > 0 ? 1.0f : g < 0 ? -1.0f : 0.0f;  // 0 for NaN, as in torch.sign
      row[i] = row[i] * keep - size * sign;
    }
  }
  return -1;
}
