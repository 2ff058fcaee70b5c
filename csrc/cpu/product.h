// Matrices in panels, and functions for the finished tiles of matrix products.
//
// All intermediate matrices of a pass are stored in panels of kWidth columns: element (row, column) of a matrix with R
// rows is at [column / kWidth][row][column % kWidth]. A tile then reads one contiguous part of each panel of its left
// factor, whatever the matrix' width, and writes one contiguous part; columns beyond the matrix hold zeros.
#pragma once

#include "cpu/element.h"

namespace hrm::HRM_ISA {

template <class T>
struct PanelsOf {
  T* data;
  int64_t rows;  // stride of panels: rows * kWidth elements

  HRM_INLINE T* at(int64_t panel, int64_t row) const { return data + (panel * rows + row) * kWidth; }
  HRM_INLINE PanelsOf from(int64_t panel, int64_t row) const { return {at(panel, row), rows}; }
};
using Panels = PanelsOf<Element>;
using FloatPanels = PanelsOf<float>;  // of sums

HRM_INLINE int64_t panels_for(int64_t columns) { return (columns + kWidth - 1) / kWidth; }

typedef Vec Tile[kTileRows][2];
#if defined(HRM_TILES) || defined(HRM_EMULATED)
constexpr bool kTileInMemory = true;
#else
constexpr bool kTileInMemory = false;  // in registers
#endif

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

// sums += left * right over `depth` steps of the inner dimension: left[row * row_step + k * k_step], right[k][kWidth].
template <int Rows, class Sums>
HRM_INLINE void multiply_rows(Sums& sums, const float* left, int64_t row_step, int64_t k_step, const float* right,
                              int64_t depth) {
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    const Vec first = load(right), second = load(right + kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
      const float factor = left[row * row_step];
      sums[row][0] += factor * first;
      sums[row][1] += factor * second;
    }
    left += k_step;
    right += kWidth;
  }
}
// The same for a tile; tiles of more rows than registers hold are computed in parts.
template <int Rows>
HRM_INLINE void multiply(Tile& tile, const float* left, int64_t row_step, int64_t k_step, const float* right,
                         int64_t depth) {
  if constexpr (Rows <= 16) {
    multiply_rows<Rows>(tile, left, row_step, k_step, right, depth);
  } else {
    constexpr int kPart = 8;
    for (int row = 0; row < Rows; row += kPart) {
      Vec sums[kPart][2];
      std::memcpy(sums, tile[row], sizeof sums);
      multiply_rows<kPart>(sums, left + row * row_step, row_step, k_step, right, depth);
      std::memcpy(tile[row], sums, sizeof sums);
    }
  }
}

// Calls each(i, row of out, tile row) for the first `count` rows of a finished tile, or all where count is larger.
template <class Each>
HRM_INLINE void for_rows(Tile& tile, int64_t count, Each each) {
  if constexpr (kTileInMemory) {
    for (int i = 0; i < kTileRows && i < count; ++i) each(i, tile[i]);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (i < count) each(i, tile[i]);
    }
  }
}

// finish: out = tile
template <class T>
HRM_INLINE auto keep(PanelsOf<T> out) {
  return [out](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
    for_rows(tile, count, [&](int i, Vec* columns) HRM_ALWAYS {
      T* to = out.at(panel, row + i);
      store(to, columns[0]);
      store(to + kLanes, columns[1]);
    });
  };
}

// finish: out = tile, or out += tile
HRM_INLINE auto add_to(FloatPanels out, bool fresh) {
  return [out, fresh](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
    for_rows(tile, count, [&](int i, Vec* columns) HRM_ALWAYS {
      float* to = out.at(panel, row + i);
      store(to, fresh ? columns[0] : load(to) + columns[0]);
      store(to + kLanes, fresh ? columns[1] : load(to + kLanes) + columns[1]);
    });
  };
}

// finish: out = tile + other
HRM_INLINE auto keep_sum(Panels other, Panels out) {
  return [other, out](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
    for_rows(tile, count, [&](int i, Vec* columns) HRM_ALWAYS {
      const Element* add = other.at(panel, row + i);
      Element* to = out.at(panel, row + i);
      store(to, load(add) + columns[0]);
      store(to + kLanes, load(add + kLanes) + columns[1]);
    });
  };
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
