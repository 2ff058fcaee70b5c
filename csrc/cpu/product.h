// Matrix products: a tile of kTileRows x kWidth in registers, the loops around it, and functions for finished tiles.
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

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

// tile += left * right over `depth` steps of the inner dimension: left[row * row_step + k * k_step], right[k][kWidth].
template <int Rows>
HRM_INLINE void multiply(Tile& tile, const float* left, int64_t row_step, int64_t k_step, const float* right,
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

constexpr int kDepthPanels = 256 / kWidth;  // parts of 256 of the inner dimension: 16 KB of weights stay in a 32 KB L1

// Multiplies the first `rows` rows of left [rows, depth] by weights; calls finish(tile, row, count, panel) for each
// tile. weights: [panels][depth_panels * kWidth][kWidth]. The last tile may also compute rows after the last one, which
// it does not pass on: left must have kTileRows more readable rows. sums: memory for (rows + kTileRows) * kWidth
// floats. Each part of DepthPanels panels of the inner dimension has its own partial sum, which keeps rounding small.
template <int DepthPanels = kDepthPanels, class Finish>
HRM_INLINE void product(Panels left, int64_t depth_panels, const Element* weights, int64_t panels, int64_t rows,
                        float* sums, Finish finish) {
  for (int64_t panel = 0; panel < panels; ++panel) {
    for (int64_t from = 0; from < depth_panels; from += DepthPanels) {
      const int64_t to = from + DepthPanels < depth_panels ? from + DepthPanels : depth_panels;
      const float* right = weights + (panel * depth_panels + from) * kWidth * kWidth;
      // The next part follows in memory: each tile prefetches its share, a few cache lines per panel.
      const float* ahead = right + (to - from) * kWidth * kWidth;
      const int64_t share = (kWidth * kWidth / 16 * kTileRows + rows - 1) / rows;
      float* sum = sums;
      for (int64_t row = 0; row < rows; row += kTileRows, sum += kTileRows * kWidth) {
        Tile tile;
#pragma GCC unroll 16
        for (int i = 0; i < kTileRows; ++i) tile[i][0] = tile[i][1] = Vec{};
        for (int64_t p = from; p < to; ++p) {
          for (int64_t line = 0; line < share; ++line, ahead += 16) __builtin_prefetch(ahead);
          multiply<kTileRows>(tile, left.at(p, row), kWidth, 1, right + (p - from) * kWidth * kWidth, kWidth);
        }
        if (from) {
#pragma GCC unroll 16
          for (int i = 0; i < kTileRows; ++i) {
            tile[i][0] += load(sum + i * kWidth);
            tile[i][1] += load(sum + i * kWidth + kLanes);
          }
        }
        if (to == depth_panels) {
          finish(tile, row, rows - row < kTileRows ? rows - row : kTileRows, panel);
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < kTileRows; ++i) {
            store(sum + i * kWidth, tile[i][0]);
            store(sum + i * kWidth + kLanes, tile[i][1]);
          }
        }
      }
    }
  }
}

// Calls each(i, row of out, tile row) for the rows of a finished tile.
template <class Each>
HRM_INLINE void for_rows(Tile& tile, int64_t count, Each each) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    if (i < count) each(i, tile[i]);
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

// Divides a panel's kWidth columns, as rows of tiles, into equal strips of at most kTileRows; the first may have one
// row more.
constexpr int kStrips = (kWidth + kTileRows - 1) / kTileRows;
constexpr int kStripRows = kWidth / kStrips, kLongStrips = kWidth % kStrips;

// into [left columns, right columns] (+)= left.T @ right over `depth` rows; all three in panels.
HRM_INLINE void add_transposed_product(Panels left, int64_t left_panels, Panels right, int64_t right_panels,
                                       int64_t depth, FloatPanels into, bool fresh) {
  const auto strip = [&](auto rows, const float* columns, const float* other, float* to) HRM_ALWAYS {
    constexpr int kRows = decltype(rows)::value;
    Tile tile;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      tile[i][0] = fresh ? Vec{} : load(to + i * kWidth);
      tile[i][1] = fresh ? Vec{} : load(to + i * kWidth + kLanes);
    }
    multiply<kRows>(tile, columns, 1, kWidth, other, depth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      store(to + i * kWidth, tile[i][0]);
      store(to + i * kWidth + kLanes, tile[i][1]);
    }
  };
  for (int64_t r = 0; r < right_panels; ++r) {
    for (int64_t l = 0; l < left_panels; ++l) {
      int column = 0;
      for (int s = 0; s < kLongStrips; ++s, column += kStripRows + 1) {
        strip(Constant<kStripRows + 1>{}, left.at(l, 0) + column, right.at(r, 0), into.at(r, l * kWidth + column));
      }
      for (int s = kLongStrips; s < kStrips; ++s, column += kStripRows) {
        strip(Constant<kStripRows>{}, left.at(l, 0) + column, right.at(r, 0), into.at(r, l * kWidth + column));
      }
    }
  }
}

}  // namespace hrm::HRM_ISA
