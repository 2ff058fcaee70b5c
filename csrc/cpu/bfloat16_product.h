// Matrix products of bfloat16 matrices in panels: the functions of float32_product.h with the instructions of tiles.h.
//
// A right factor is packed by pairs of the inner dimension, [panel][depth / 2][kWidth][2], with zeros after the last
// row. Sums are float32 over the whole depth.
#pragma once

#include "cpu/panels.h"
#include "cpu/tiles.h"

namespace hrm::HRM_ISA {

constexpr int64_t kBlock = int64_t{kWidth} * kWidth;  // elements of a panel of a right factor per panel of the depth

// The part of the next panel of weights that a tile prefetches.
struct Ahead {
  const Element* next;
  int64_t lines;  // for each panel of the depth
  HRM_INLINE void fetch() {
    for (int64_t line = 0; line < lines; ++line, next += 32) __builtin_prefetch(next, 0, 2);
  }
};

#if defined(HRM_TILES)

// tile = left @ right, for 2 x 2 registers of sums, or 1 x 2 for at most 16 rows
template <bool Both>
HRM_INLINE void multiply(Tile& tile, Panels left, const Element* right, int64_t depth_panels, Ahead ahead) {
  constexpr int64_t left_stride = sizeof(Element) * kWidth, right_stride = 2 * left_stride, sums = sizeof tile[0];
  tile_zero<0>();
  tile_zero<1>();
  if constexpr (Both) {
    tile_zero<2>();
    tile_zero<3>();
  }
  const Element* rows = left.data;
  for (int64_t p = 0; p < depth_panels; ++p, rows += left.rows * kWidth, right += kBlock) {
    tile_load<4>(rows, left_stride);
    tile_load<6>(right, right_stride);
    tile_load<7>(right + kWidth, right_stride);
    tile_dot<0, 4, 6>();
    tile_dot<1, 4, 7>();
    if constexpr (Both) {
      tile_load<5>(rows + kTile * kWidth, left_stride);
      tile_dot<2, 5, 6>();
      tile_dot<3, 5, 7>();
    }
    ahead.fetch();
  }
  tile_store<0>(&tile[0][0], sums);
  tile_store<1>(&tile[0][1], sums);
  if constexpr (Both) {
    tile_store<2>(&tile[kTile][0], sums);
    tile_store<3>(&tile[kTile][1], sums);
  }
}
HRM_INLINE void multiply(Tile& tile, Panels left, const Element* right, int64_t depth_panels, int64_t count,
                         Ahead ahead) {
  if (count > kTile) {
    multiply<true>(tile, left, right, depth_panels, ahead);
  } else {
    multiply<false>(tile, left, right, depth_panels, ahead);
  }
}

#else

HRM_INLINE void multiply(Tile& tile, Panels left, const Element* right, int64_t depth_panels, int64_t, Ahead ahead) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) tile[i][0] = tile[i][1] = Vec{};
  for (int64_t p = 0; p < depth_panels; ++p) {
    const Element* rows = left.at(p, 0);
    for (int k = 0; k < kWidth; k += 2, right += 2 * kWidth) {
      const BitVec first = load_pairs(right), second = load_pairs(right + kWidth);
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        uint32_t both;
        std::memcpy(&both, rows + i * kWidth + k, sizeof both);
        const BitVec factor = both - BitVec{};
        tile[i][0] = dot(tile[i][0], factor, first);
        tile[i][1] = dot(tile[i][1], factor, second);
      }
    }
    ahead.fetch();
  }
}

#endif

// As in float32_product.h, but right is packed by pairs, and `sums` is not used.
template <int = 0, class Finish>
HRM_INLINE void product(Panels left, int64_t depth_panels, const Element* right, int64_t panels, int64_t rows, float*,
                        Finish finish) {
  const int64_t share = (kBlock / 32 * kTileRows + rows - 1) / rows;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const Element* weights = right + panel * depth_panels * kBlock;
    const Element* next = weights + depth_panels * kBlock;
    for (int64_t row = 0; row < rows; row += kTileRows, next += share * depth_panels * 32) {
      Tile tile;
      const int64_t count = rows - row < kTileRows ? rows - row : kTileRows;
      multiply(tile, left.from(0, row), weights, depth_panels, count, {next, share});
      finish(tile, row, count, panel);
    }
  }
}

// out = left * right + other; out may be `other`. The sum is rounded once.
HRM_INLINE void product_plus(Panels left, int64_t depth_panels, const Element* right, int64_t panels, int64_t rows,
                             float*, Panels other, Panels out) {
  product(left, depth_panels, right, panels, rows, nullptr, keep_sum(other, out));
}

// Interleaves the first `count` of kWidth rows of kWidth elements into pairs; zeros follow.
HRM_INLINE void interleave(const Element* from, int64_t count, Element* to) {
  for (int64_t row = 0; row < kWidth; row += 2, to += 2 * kWidth) {
    const Element* even = row < count ? from + row * kWidth : nullptr;
    const Element* odd = row + 1 < count ? even + kWidth : nullptr;
    store_pairs(to, pair(even, odd));
    store_pairs(to + kWidth, pair(even ? even + kLanes : nullptr, odd ? odd + kLanes : nullptr));
  }
}

// Transposes kWidth rows of kWidth elements, of which the first `count` are given and the others zero.
HRM_INLINE void transpose_square(const Element* from, int64_t count, Element* to) {
  alignas(64) Element pairs[kBlock];
  interleave(from, count, pairs);
  for (int half = 0; half < 2; ++half) {
    Vec square[kLanes];
    for (int i = 0; i < kLanes; ++i) square[i] = as_floats(load_pairs(pairs + (2 * i + half) * kWidth));
    transpose(square);
    for (int i = 0; i < kLanes; ++i) store_pairs(to + (half * kLanes + i) * kWidth, as_bits(square[i]));
  }
}

// `rows` rows of panels as a right factor.
HRM_INLINE void as_right(Panels from, int64_t panels, int64_t rows, Element* to) {
  for (int64_t panel = 0; panel < panels; ++panel) {
    for (int64_t row = 0; row < rows; row += kWidth, to += kBlock) interleave(from.at(panel, row), rows - row, to);
  }
}

// `rows` rows of panels, transposed, as a left factor.
HRM_INLINE void as_transposed_left(Panels from, int64_t panels, int64_t rows, Panels to) {
  for (int64_t row = 0; row < rows; row += kWidth) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      transpose_square(from.at(panel, row), rows - row, to.at(row / kWidth, panel * kWidth));
    }
  }
}

// The number of elements of memory that add_transposed_product needs.
constexpr int64_t transposed_elements(int64_t left_panels, int64_t right_panels, int64_t depth) {
  return (depth + kWidth - 1) / kWidth * ((left_panels * kWidth + kTileRows) * kWidth + right_panels * kBlock);
}

// into [left columns, right columns] (+)= left.T @ right over `depth` rows
HRM_INLINE void add_transposed_product(Panels left, int64_t left_panels, Panels right, int64_t right_panels,
                                       int64_t depth, FloatPanels into, bool fresh, Element* memory) {
  const Panels transposed{memory, left_panels * kWidth + kTileRows};
  Element* packed = transposed.at(panels_for(depth), 0);
  as_transposed_left(left, left_panels, depth, transposed);
  as_right(right, right_panels, depth, packed);
  product(transposed, panels_for(depth), packed, right_panels, left_panels * kWidth, nullptr, add_to(into, fresh));
}

// Packs panel `panel` of weights [outputs, inputs] as the right factor of x @ weights.T: pairs of inputs.
inline void pack_for_outputs(const BFloat16* weights, Columns outputs, Columns inputs, int64_t panel, Element* packed) {
  const int64_t width = inputs.real();
  const BFloat16* rows[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) {
    const int64_t output = outputs.column(panel, lane);
    rows[lane] = output < 0 ? nullptr : weights + output * width;
  }
  for (int64_t p = 0; p < inputs.panels(); ++p, packed += kBlock) {
    if (const int64_t first = inputs.whole(p); first >= 0) {
      for (int half = 0; half < 2; ++half) {
        Vec square[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const BFloat16* row = rows[half * kLanes + i];
          square[i] = row ? as_floats(load_pairs(row + first)) : Vec{};
        }
        transpose(square);
        for (int i = 0; i < kLanes; ++i) store_pairs(packed + (2 * i + half) * kWidth, as_bits(square[i]));
      }
      continue;
    }
    for (int k = 0; k < kWidth; ++k) {
      const int64_t input = inputs.column(p, k);
      for (int lane = 0; lane < kWidth; ++lane) {
        packed[k / 2 * 2 * kWidth + 2 * lane + k % 2] = rows[lane] && input >= 0 ? rows[lane][input] : BFloat16{0};
      }
    }
  }
}

// Packs panel `panel` of the inputs as the right factor of dy @ weights: pairs of outputs.
inline void pack_for_inputs(const BFloat16* weights, Columns outputs, Columns inputs, int64_t panel, Element* packed) {
  const int64_t width = inputs.real(), first = inputs.whole(panel);
  int64_t columns[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) columns[lane] = inputs.column(panel, lane);
  for (int64_t p = 0; p < outputs.panels(); ++p) {
    for (int k = 0; k < kWidth; k += 2, packed += 2 * kWidth) {
      const BFloat16* rows[2];
      for (int odd = 0; odd < 2; ++odd) {
        const int64_t output = outputs.column(p, k + odd);
        rows[odd] = output < 0 ? nullptr : weights + output * width;
      }
      if (first >= 0) {
        for (int half = 0; half < 2; ++half) {
          const int64_t at = first + half * kLanes;
          store_pairs(packed + half * kWidth, pair(rows[0] ? rows[0] + at : nullptr, rows[1] ? rows[1] + at : nullptr));
        }
        continue;
      }
      for (int lane = 0; lane < kWidth; ++lane) {
        for (int odd = 0; odd < 2; ++odd) {
          packed[2 * lane + odd] = rows[odd] && columns[lane] >= 0 ? rows[odd][columns[lane]] : BFloat16{0};
        }
      }
    }
  }
}

// Transposes rows [first, first + kWidth) of a head in panels into a panel of a right factor; rows from `end` on are 0.
HRM_INLINE void transpose_panel(Panels from, int64_t panels, int64_t first, int64_t end, Element* to) {
  for (int64_t panel = 0; panel < panels; ++panel, to += kBlock) {
    const Element* source = from.at(panel, first);
    for (int half = 0; half < 2; ++half) {
      Vec square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t row = half * kLanes + i;
        square[i] = first + row < end ? as_floats(load_pairs(source + row * kWidth)) : Vec{};
      }
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store_pairs(to + (2 * i + half) * kWidth, as_bits(square[i]));
    }
  }
}

// left.T @ right over all rows, computed in parts by several tasks. The factors are packed first, each once.
struct TransposedProduct {
  Panels left, right;
  int64_t left_panels, right_panels, rows;
  Panels transposed{};
  Element* packed = nullptr;

  int64_t pack_tasks() const { return left_panels + right_panels; }
  HRM_INLINE void pack(int64_t task) const {
    if (task < left_panels) return as_transposed_left(left.from(task, 0), 1, rows, transposed.from(0, task * kWidth));
    task -= left_panels;
    as_right(right.from(task, 0), 1, rows, packed + task * panels_for(rows) * kBlock);
  }
  HRM_INLINE void place(Scratch& scratch) {
    transposed = scratch.panels(panels_for(rows), left_panels * kWidth + kTileRows);
    packed = scratch.elements(right_panels * panels_for(rows) * kBlock);
  }
  HRM_INLINE void add(int64_t out, int64_t outs, int64_t in, int64_t ins, int64_t first, int64_t count,
                      FloatPanels into) const {
    for (int64_t p = 0; p < ins; ++p) {
      const Element* factor = packed + ((in + p) * panels_for(rows) + first / kWidth) * kBlock;
      product(transposed.from(first / kWidth, out * kWidth), panels_for(count), factor, 1, outs * kWidth, nullptr,
              add_to(into.from(p, 0), first == 0));
    }
  }
};
constexpr int64_t kGradientRows = 1024;  // per part: some panels of both factors stay in an L2 cache

}  // namespace hrm::HRM_ISA
