// The norm of a row in panels.
#pragma once

#include <cmath>

#include "cpu/panels.h"

namespace hrm::HRM_ISA {

// to = x / rms(x), which may be the same memory; returns 1 / rms(x).
HRM_INLINE float norm_row_to(Panels x, Panels to, int64_t panels, int64_t row, int64_t columns, float eps) {
  Vec squares{}, more{};
  for (int64_t p = 0; p < panels; ++p) {
    const Vec a = load(x.at(p, row)), b = load(x.at(p, row) + kLanes);
    squares += a * a;
    more += b * b;
  }
  const float rstd = 1.0f / std::sqrt(sum(squares + more) / static_cast<float>(columns) + eps);
  for (int64_t p = 0; p < panels; ++p) {
    const Element* from = x.at(p, row);
    Element* at = to.at(p, row);
    store(at, load(from) * rstd);
    store(at + kLanes, load(from + kLanes) * rstd);
  }
  return rstd;
}
HRM_INLINE float norm_row(Panels x, int64_t panels, int64_t row, int64_t columns, float eps) {
  return norm_row_to(x, x, panels, row, columns, eps);
}

}  // namespace hrm::HRM_ISA
