// Matrix products of float32 matrices in panels: a tile of kTileRows x kWidth in registers, the loops around it, and
// the packing of right factors, [panel][depth][kWidth].
#pragma once

#include "cpu/panels.h"

namespace hrm::HRM_ISA {

struct TileScope {  // no tile registers (tiles.h)
  TileScope() {}
};

constexpr int kDepthPanels = 256 / kWidth;  // parts of 256 of the inner dimension: 16 KB of weights stay in a 32 KB L1

// Calls each(tile, row) for each tile of left [rows, depth_panels * kWidth] times one panel of weights. Meanwhile it
// prefetches as many weights as it reads, from `ahead`: each tile its share, a few cache lines per panel. The last tile
// may also compute rows after the last one: left must have kTileRows more readable rows.
template <class Each>
HRM_INLINE void multiply_panel(Panels left, int64_t depth_panels, const Element* weights, const Element* ahead,
                               int64_t rows, Each each) {
  const int64_t share = (kWidth * kWidth / 16 * kTileRows + rows - 1) / rows;
  for (int64_t row = 0; row < rows; row += kTileRows) {
    Tile tile;
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) tile[i][0] = tile[i][1] = Vec{};
    for (int64_t p = 0; p < depth_panels; ++p) {
      for (int64_t line = 0; line < share; ++line, ahead += 16) __builtin_prefetch(ahead);
      multiply<kTileRows>(tile, left.at(p, row), kWidth, 1, weights + p * kWidth * kWidth, kWidth);
    }
    each(tile, row);
  }
}

// Multiplies the first `rows` rows of left [rows, depth] by weights; calls finish(tile, row, count, panel) for each
// tile. weights: [panels][depth_panels * kWidth][kWidth]. It does not pass on rows after the last one. sums: memory for
// (rows + kTileRows) * kWidth floats. Each part of DepthPanels panels of the inner dimension has its own partial sum,
// which keeps rounding small.
template <int DepthPanels = kDepthPanels, class Finish>
HRM_INLINE void product(Panels left, int64_t depth_panels, const Element* weights, int64_t panels, int64_t rows,
                        float* sums, Finish finish) {
  for (int64_t panel = 0; panel < panels; ++panel) {
    for (int64_t from = 0; from < depth_panels; from += DepthPanels) {
      const int64_t to = from + DepthPanels < depth_panels ? from + DepthPanels : depth_panels;
      const Element* right = weights + (panel * depth_panels + from) * kWidth * kWidth;
      const Element* ahead = right + (to - from) * kWidth * kWidth;  // the next part follows in memory
      multiply_panel(left.from(from, 0), to - from, right, ahead, rows, [&](Tile& tile, int64_t row) HRM_ALWAYS {
        float* sum = sums + row * kWidth;
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
      });
    }
  }
}

// out = left * weights + other; out may be `other`. All panels of the result take the sums over 256 of the inner
// dimension before the next 256: a wide left factor, such as that of `down`, would not stay in the cache.
HRM_INLINE void product_plus(Panels left, int64_t depth_panels, const Element* weights, int64_t panels, int64_t rows,
                             float*, Panels other, Panels out) {
  for (int64_t from = 0; from < depth_panels; from += kDepthPanels) {
    const int64_t depth = depth_panels - from < kDepthPanels ? depth_panels - from : kDepthPanels;
    const auto finish = keep_sum(from ? out : other, out);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const Element* right = weights + (panel * depth_panels + from) * kWidth * kWidth;
      const Element* ahead =
          panel + 1 < panels ? right + depth_panels * kWidth * kWidth : weights + (from + depth) * kWidth * kWidth;
      multiply_panel(left.from(from, 0), depth, right, ahead, rows,
                     [&](Tile& tile, int64_t row) HRM_ALWAYS { finish(tile, row, rows - row, panel); });
    }
  }
}

// Divides a panel's kWidth columns, as rows of tiles, into equal strips of at most kTileRows; the first may have one
// row more.
constexpr int kStrips = (kWidth + kTileRows - 1) / kTileRows;
constexpr int kStripRows = kWidth / kStrips, kLongStrips = kWidth % kStrips;

// into [left columns, right columns] (+)= left.T @ right over `depth` rows; all three in panels. A call is a partial
// sum, as in `product`.
HRM_INLINE void add_transposed_product(Panels left, int64_t left_panels, Panels right, int64_t right_panels,
                                       int64_t depth, FloatPanels into, bool fresh, Element* = nullptr) {
  const auto strip = [&](auto rows, const float* columns, const float* other, float* to) HRM_ALWAYS {
    constexpr int kRows = decltype(rows)::value;
    Tile tile;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) tile[i][0] = tile[i][1] = Vec{};
    multiply<kRows>(tile, columns, 1, kWidth, other, depth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      store(to + i * kWidth, fresh ? tile[i][0] : load(to + i * kWidth) + tile[i][0]);
      store(to + i * kWidth + kLanes, fresh ? tile[i][1] : load(to + i * kWidth + kLanes) + tile[i][1]);
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

// `rows` rows of panels as a right factor: zero rows follow up to whole panels.
HRM_INLINE void as_right(Panels from, int64_t panels, int64_t rows, Element* to) {
  const int64_t padded = panels_for(rows) * kWidth;
  for (int64_t panel = 0; panel < panels; ++panel, to += padded * kWidth) {
    std::memcpy(to, from.at(panel, 0), sizeof(Element) * kWidth * rows);
    std::memset(to + rows * kWidth, 0, sizeof(Element) * kWidth * (padded - rows));
  }
}

// add_transposed_product needs no memory.
constexpr int64_t transposed_elements(int64_t, int64_t, int64_t) { return 0; }

// Packs panel `panel` of weights [outputs, inputs] as the right factor of x @ weights.T: for each input the panel's
// outputs.
template <class T>
inline void pack_for_outputs(const T* weights, Columns outputs, Columns inputs, int64_t panel, Element* packed) {
  const int64_t width = inputs.real();
  const T* rows[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) {
    const int64_t output = outputs.column(panel, lane);
    rows[lane] = output < 0 ? nullptr : weights + output * width;
  }
  for (int64_t p = 0; p < inputs.panels(); ++p, packed += kWidth * kWidth) {
    const int64_t first = inputs.whole(p);
    if (first >= 0) {
      for (int quarter = 0; quarter < 4; ++quarter) {  // kLanes inputs x kLanes outputs
        const int k = quarter / 2 * kLanes, lane = quarter % 2 * kLanes;
        Vec square[kLanes];
        for (int i = 0; i < kLanes; ++i) square[i] = rows[lane + i] ? load(rows[lane + i] + first + k) : Vec{};
        transpose(square);
        for (int i = 0; i < kLanes; ++i) store(packed + (k + i) * kWidth + lane, square[i]);
      }
      continue;
    }
    for (int lane = 0; lane < kWidth; ++lane) {
      for (int k = 0; k < kWidth; ++k) {
        const int64_t input = inputs.column(p, k);
        packed[k * kWidth + lane] = rows[lane] && input >= 0 ? to_float(rows[lane][input]) : 0.0f;
      }
    }
  }
}

// Packs panel `panel` of the inputs as the right factor of dy @ weights: for each output the panel's inputs.
template <class T>
inline void pack_for_inputs(const T* weights, Columns outputs, Columns inputs, int64_t panel, Element* packed) {
  const int64_t width = inputs.real(), first = inputs.whole(panel);
  int64_t columns[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) columns[lane] = inputs.column(panel, lane);
  for (int64_t p = 0; p < outputs.panels(); ++p) {
    const int64_t first_output = outputs.whole(p);
    for (int k = 0; k < kWidth; ++k, packed += kWidth) {
      const int64_t output = first_output < 0 ? outputs.column(p, k) : first_output + k;
      const T* row = weights + output * width;
      if (output >= 0 && first >= 0) {
        store(packed, load(row + first));
        store(packed + kLanes, load(row + first + kLanes));
        continue;
      }
      for (int lane = 0; lane < kWidth; ++lane) {
        packed[lane] = output < 0 || columns[lane] < 0 ? 0.0f : to_float(row[columns[lane]]);
      }
    }
  }
}

// left.T @ right over all rows, computed in parts by several tasks.
struct TransposedProduct {
  Panels left, right;
  int64_t left_panels, right_panels, rows;

  // Only products over pairs pack their factors.
  int64_t pack_tasks() const { return 0; }
  HRM_INLINE void pack(int64_t) const {}
  HRM_INLINE void place(Scratch&) {}

  // into (+)= some panels of both, over rows [first, first + count)
  HRM_INLINE void add(int64_t out, int64_t outs, int64_t in, int64_t ins, int64_t first, int64_t count,
                      FloatPanels into) const {
    add_transposed_product(left.from(out, first), outs, right.from(in, first), ins, count, into, first == 0);
  }
};
constexpr int64_t kGradientRows = 256;  // per part

}  // namespace hrm::HRM_ISA
