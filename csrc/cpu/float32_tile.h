// A tile of float32 sums in registers, kFloatRows x kWidth, whatever the elements of matrices are.
#pragma once

#include "cpu/product.h"

namespace hrm::HRM_ISA {

#if defined(HRM_PAIRS)
constexpr int kFloatRows = 12;  // as for float32 elements in AVX-512 (vec.h)
#else
constexpr int kFloatRows = kTileRows;
#endif
typedef Vec FloatTile[kFloatRows][2];

// tile += left * right over `depth` steps of the inner dimension: left[row * row_step + k * k_step], right[k][kWidth].
template <int Rows>
HRM_INLINE void multiply(FloatTile& tile, const float* left, int64_t row_step, int64_t k_step, const float* right,
                         int64_t depth) {
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    const Vec first = load(right), second = load(right + kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      const float factor = left[row * row_step];
      tile[row][0] += factor * first;
      tile[row][1] += factor * second;
    }
    left += k_step;
    right += kWidth;
  }
}

// Transposes rows [first, first + kWidth) of panels into to[column][kWidth]; rows from `end` on give 0.
HRM_INLINE void transpose_panel(FloatPanels from, int64_t panels, int64_t first, int64_t end, float* to) {
  const int64_t rows = end - first < kWidth ? end - first : kWidth;
  for (int64_t panel = 0; panel < panels; ++panel, to += kWidth * kWidth) {
    const float* source = from.at(panel, first);
    if (rows < kWidth) std::memset(to, 0, sizeof(float) * kWidth * kWidth);
    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 32
      for (int lane = 0; lane < kWidth; ++lane) to[lane * kWidth + row] = source[row * kWidth + lane];
    }
  }
}

}  // namespace hrm::HRM_ISA
