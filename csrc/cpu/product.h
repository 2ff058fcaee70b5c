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

// Calls each(i, row of out, tile row) for the rows of a finished tile.
template <int Rows, class Each>
HRM_INLINE void for_rows(Vec (&tile)[Rows][2], int64_t count, Each each) {
  if constexpr (kTileInMemory) {
    for (int64_t i = 0; i < count && i < Rows; ++i) each(static_cast<int>(i), tile[i]);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
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

}  // namespace hrm::HRM_ISA
