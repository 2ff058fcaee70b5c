// Matrices of weights as left factors, in strips of kTileRows rows, whose right factors are pieces [depth][kWidth].
#pragma once

#include <initializer_list>

#include "cpu/panels.h"
#include "cpu/team.h"

namespace hrm::HRM_ISA {

HRM_INLINE void clear(Tile& tile) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) tile[i][0] = tile[i][1] = Vec{};
}
// sums (+)= tile
HRM_INLINE void add_tile(const Tile& tile, float* sums, bool fresh) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) {
    for (int half = 0; half < 2; ++half, sums += kLanes) {
      store(sums, fresh ? tile[i][half] : load(sums) + tile[i][half]);
    }
  }
}

// Stores the first `count` rows of a tile.
HRM_INLINE void store_tile(Tile& tile, int64_t count, Element* to) {
  for_rows(tile, count, [&](int, Vec* columns) HRM_ALWAYS {
    for (int half = 0; half < 2; ++half, to += kLanes) store(to, columns[half]);
  });
}

// A matrix [rows, columns] as a left factor, with zeros after the last row. It starts at element `first` of the
// weights, row-major or transposed. A strip is [columns][kTileRows], or with pairs of columns [panel of
// columns][kTileRows][kWidth], with zeros after the last column.
struct Strips {
  int64_t rows, columns, first;
  bool transposed;
  Element* data = nullptr;

  int64_t count() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t elements() const { return count() * kTileRows * padded(); }
  Element* at(int64_t strip) const { return data + strip * kTileRows * padded(); }

  template <class T>
  HRM_INLINE void copy(const T* weights, int64_t row, int64_t column, Element* to) const {
    const int64_t element = first + (transposed ? column * rows + row : row * columns + column);
    assign(*to, row < rows && column < columns ? to_float(weights[element]) : 0.0f);
  }

#if defined(HRM_PAIRS)

  int64_t padded() const { return panels_for(columns) * kWidth; }

  template <class T>
  void pack(const T* weights, int64_t strip) const {
    Element* to = at(strip);
    for (int64_t panel = 0; panel < padded(); panel += kWidth) {
      for (int i = 0; i < kTileRows; ++i) {
        for (int k = 0; k < kWidth; ++k) copy(weights, strip * kTileRows + i, panel + k, to++);
      }
    }
  }

  // The rows of a tile that `times` computes.
  HRM_INLINE int64_t computed(int64_t strip) const {
    const int64_t left = rows - strip * kTileRows;
    return left < kTileRows ? left : kTileRows;
  }
  // tile = strip @ right, over all columns
  HRM_INLINE void times(int64_t strip, int64_t, int64_t, const Element* right, Tile& tile) const {
    multiply(tile, Panels{at(strip), kTileRows}, right, panels_for(columns), computed(strip), {right, 0});
  }

#else

  int64_t padded() const { return columns; }

  template <class T>
  void pack(const T* weights, int64_t strip) const {
    Element* to = at(strip);
    for (int64_t column = 0; column < columns; ++column) {
      for (int i = 0; i < kTileRows; ++i) copy(weights, strip * kTileRows + i, column, to++);
    }
  }

  static constexpr int64_t kDepth = 144;  // of a partial sum, which keeps rounding small

  HRM_INLINE int64_t computed(int64_t) const { return kTileRows; }
  // tile = strip @ right, over columns [from, to); right starts at column `from`.
  HRM_INLINE void times(int64_t strip, int64_t from, int64_t to, const Element* right, Tile& tile) const {
    const auto multiply_part = [&](int64_t start) HRM_ALWAYS {
      const int64_t depth = to - start < kDepth ? to - start : kDepth;
      clear(tile);
      multiply<kTileRows>(tile, at(strip) + start * kTileRows, 1, kTileRows, right + (start - from) * kWidth, depth);
    };
    multiply_part(from);
    for (int64_t start = from + kDepth; start < to; start += kDepth) {
      float sums[kTileRows * kWidth];
      add_tile(tile, sums, true);
      multiply_part(start);
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        for (int half = 0; half < 2; ++half) tile[i][half] += load(sums + i * kWidth + half * kLanes);
      }
    }
  }

#endif
};

#if defined(HRM_PAIRS)

constexpr int kPartialPanels = 0;  // product.h has no partial sums

// The rows of an inner dimension that are computed at once: here all of them.
HRM_INLINE int64_t part_rows(int64_t inner) { return inner; }

// Piece [rows][kWidth] as a right factor, in `memory` of factor_elements(rows).
HRM_INLINE int64_t factor_elements(int64_t rows) { return panels_for(rows) * kBlock; }
HRM_INLINE const Element* right_factor(const Element* piece, int64_t rows, Element* memory) {
  as_right({const_cast<Element*>(piece), rows}, 1, rows, memory);
  return memory;
}

#else

constexpr int kPartialPanels = 128 / kWidth;  // whose sum is a partial sum

// Parts of nearly equal numbers of whole tiles, each one partial sum.
HRM_INLINE int64_t part_rows(int64_t inner) {
  const int64_t parts = (inner - 1) / Strips::kDepth + 1, rows = (inner + parts - 1) / parts;  // inner may be 0
  return (rows + kTileRows - 1) / kTileRows * kTileRows;
}

HRM_INLINE int64_t factor_elements(int64_t) { return 0; }
HRM_INLINE const Element* right_factor(const Element* piece, int64_t, Element*) { return piece; }

#endif

// Packs matrices of the same elements, one strip per task.
template <class T>
struct StripsOf {
  Strips strips;
  const T* weights;
};
template <class T>
void pack_strips(std::initializer_list<StripsOf<T>> matrices, Team::Member& team) {
  const int64_t count = static_cast<int64_t>(matrices.size());
  int64_t most = 0;
  for (const StripsOf<T>& m : matrices) most = m.strips.count() > most ? m.strips.count() : most;
  team.for_each(most * count, [&](int64_t task) {
    const StripsOf<T>& m = matrices.begin()[task % count];
    if (task / count < m.strips.count()) m.strips.pack(m.weights, task / count);
  });
}

}  // namespace hrm::HRM_ISA
