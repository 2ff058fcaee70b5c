// Full attention of one head of one batch row, forward and backward, over q, k, v in panels.
//
// It iterates over blocks of kQueries queries: scores against all keys (q @ k.T, with keys transposed once per head),
// softmax, and the weighted sum of values, as products over panels. Scores never leave the cache, and any S works.
#pragma once

#include <cmath>
#include <type_traits>

#include "cpu/panels.h"

namespace hrm::HRM_ISA {

constexpr int64_t kQueries = kTileRows > 16 ? 2 * kTileRows : 4 * kTileRows;
constexpr bool kSeparate = !std::is_same_v<Element, float>;  // probabilities don't replace scores, which are float32

// RoPE: rotates the pair (i, i + head_dim / 2) of each row by the angles of cos, sin [S, head_dim]; nullptr: no
// rotation.
struct Rope {
  const float *cos, *sin;
  int64_t head_dim;

  // Rotates rows [position, position + count) of one head; `back` rotates the other way, for gradients.
  template <class T>
  HRM_INLINE void turn(PanelsOf<T> from, Panels to, int64_t position, int64_t count, bool back) const {
    const int64_t half = head_dim / 2, panels = panels_for(head_dim);
    if (!cos || head_dim % 2 || half % kLanes) {
      for (int64_t row = 0; row < count; ++row) {
        for (int64_t p = 0; p < panels; ++p) {
          for (int half_panel = 0; half_panel < kWidth; half_panel += kLanes) {
            store(to.at(p, row) + half_panel, load(from.at(p, row) + half_panel));
          }
        }
        for (int64_t i = 0; cos && i < half; ++i) {
          const float* c = cos + (position + row) * head_dim;
          const float* s = sin + (position + row) * head_dim;
          const int64_t j = i + half;
          const float a = to_float(from.at(i / kWidth, row)[i % kWidth]);
          const float b = to_float(from.at(j / kWidth, row)[j % kWidth]);
          assign(to.at(i / kWidth, row)[i % kWidth], back ? a * c[i] + b * s[j] : a * c[i] - b * s[i]);
          assign(to.at(j / kWidth, row)[j % kWidth], back ? b * c[j] - a * s[i] : b * c[j] + a * s[j]);
        }
      }
      return;
    }
    for (int64_t row = 0; row < count; ++row) {
      const float* c = cos + (position + row) * head_dim;
      const float* s = sin + (position + row) * head_dim;
      for (int64_t i = 0; i < half; i += kLanes) {
        const int64_t j = i + half;
        const Vec a = load(from.at(i / kWidth, row) + i % kWidth), b = load(from.at(j / kWidth, row) + j % kWidth);
        const Vec ci = load(c + i), si = load(s + i), cj = load(c + j), sj = load(s + j);
        store(to.at(i / kWidth, row) + i % kWidth, back ? a * ci + b * sj : a * ci - b * si);
        store(to.at(j / kWidth, row) + j % kWidth, back ? b * cj - a * si : b * cj + a * sj);
      }
    }
  }
};

// The layout of q, k, v of all heads and of their gradients: [3 * heads * panels of a head][rows][kWidth].
struct Heads {
  Panels qkv;
  int64_t positions, heads, head_dim;
  Rope rope;

  HRM_INLINE int64_t width() const { return panels_for(head_dim); }
  HRM_INLINE int64_t keys() const { return panels_for(positions); }
  HRM_INLINE Panels part(Panels all, int part, int64_t batch, int64_t head) const {  // 0 q, 1 k, 2 v
    return all.from((part * heads + head) * width(), batch * positions);
  }
  // Number of floats of scratch memory for one head.
  int64_t forward_scratch() const {
    const int64_t key_rows = keys() * kWidth + kTileRows, query_rows = kQueries + kTileRows;
    const int64_t elements = width() * (3 * key_rows + query_rows) + (kSeparate ? keys() * query_rows : 0);
    return floats_for(elements * kWidth) + kWidth * (keys() * query_rows + query_rows);
  }
  int64_t backward_scratch() const {
    const int64_t key_rows = keys() * kWidth + kTileRows, query_rows = kQueries + kTileRows;
    const int64_t elements = width() * 4 * key_rows + 2 * keys() * query_rows +
                             (transposed_elements(keys(), width(), kQueries) + kWidth - 1) / kWidth;
    return floats_for(elements * kWidth) + kWidth * (width() * 3 * key_rows + query_rows) + kQueries;
  }
};

// Copies rows of panels; zero rows follow, up to row `until`.
HRM_INLINE void copy_rows(Panels from, int64_t panels, int64_t count, Panels to, int64_t until) {
  for (int64_t p = 0; p < panels; ++p) {
    std::memcpy(to.at(p, 0), from.at(p, 0), sizeof(Element) * kWidth * count);
    std::memset(to.at(p, count), 0, sizeof(Element) * kWidth * (until - count));
  }
}
// Transposes keys as a right factor.
HRM_INLINE void transpose(Panels from, int64_t panels, int64_t rows, Element* to) {
  for (int64_t first = 0; first < rows; first += kWidth, to += panels * kWidth * kWidth) {
    transpose_panel(from, panels, first, rows, to);
  }
}

// The memory of the probabilities: that of the scores, if they have the same type.
template <class T>
HRM_INLINE Panels probabilities(PanelsOf<T> scores, int64_t keys, Scratch& scratch) {
  if constexpr (std::is_same_v<T, Element>) {
    return scores;
  } else {
    return scratch.panels(keys, kQueries + kTileRows);
  }
}

// lse: [batch, heads, positions] of the scaled scores, or nullptr.
inline void attend(const Heads& heads, int64_t batch, int64_t head, Panels out, float* lse, float* memory) {
  const int64_t positions = heads.positions, width = heads.width(), keys = heads.keys();
  Scratch scratch{memory};
  const Panels k = scratch.panels(width, keys * kWidth);
  Element* v = scratch.elements(width * keys * kWidth * kWidth);
  Element* k_transposed = scratch.elements(width * keys * kWidth * kWidth);
  const Panels q = scratch.panels(width, kQueries + kTileRows);
  const FloatPanels s = scratch.float_panels(keys, kQueries + kTileRows);
  const Panels p = probabilities(s, keys, scratch);
  float* sums = scratch.floats((kQueries + kTileRows) * kWidth);
  const float scale = 1.0f / std::sqrt(static_cast<float>(heads.head_dim));

  heads.rope.turn(heads.part(heads.qkv, 1, batch, head), k, 0, positions, false);
  transpose(k, width, positions, k_transposed);
  as_right(heads.part(heads.qkv, 2, batch, head), width, positions, v);
  const Panels queries = heads.part(heads.qkv, 0, batch, head);
  const Panels result = out.from(head * width, batch * positions);
  for (int64_t first = 0; first < positions; first += kQueries) {
    const int64_t rows = positions - first < kQueries ? positions - first : kQueries;
    heads.rope.turn(queries.from(0, first), q, first, rows, false);
    product(q, width, k_transposed, keys, rows, sums, keep(s));
    float inverse[kQueries];
    for (int64_t row = 0; row < rows; ++row) {
      Vec most = all(-INFINITY);
      float top = -INFINITY;
      for (int64_t panel = 0; panel < keys; ++panel) {
        const float* scores = s.at(panel, row);
        if ((panel + 1) * kWidth <= positions) {
          most = max(most, max(load(scores), load(scores + kLanes)));
        } else {
          for (int64_t lane = 0; lane < positions - panel * kWidth; ++lane) {
            top = scores[lane] > top ? scores[lane] : top;
          }
        }
      }
      top = largest(most) > top ? largest(most) : top;
      Vec total{};
      for (int64_t panel = 0; panel < keys; ++panel) {
        float* scores = s.at(panel, row);
        store(scores, exp((load(scores) - top) * scale));
        store(scores + kLanes, exp((load(scores + kLanes) - top) * scale));
        for (int64_t lane = positions - panel * kWidth; lane < kWidth; ++lane) scores[lane] = 0;
        total += load(scores) + load(scores + kLanes);
        if (kSeparate) {
          store(p.at(panel, row), load(scores));
          store(p.at(panel, row) + kLanes, load(scores + kLanes));
        }
      }
      const float weight = sum(total);
      inverse[row] = 1.0f / weight;
      if (lse) lse[(batch * heads.heads + head) * positions + first + row] = top * scale + std::log(weight);
    }
    const Panels here = result.from(0, first);
    product(p, keys, v, width, rows, sums, [&](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
      for_rows(tile, count, [&](int i, Vec* columns) HRM_ALWAYS {
        Element* to = here.at(panel, row + i);
        store(to, columns[0] * inverse[row + i]);
        store(to + kLanes, columns[1] * inverse[row + i]);
      });
    });
  }
}

// Writes this head's part of dqkv from dout and the forward's out and lse; recomputes the probabilities.
inline void attend_backward(const Heads& heads, int64_t batch, int64_t head, Panels dout, Panels out, const float* lse,
                            Panels dqkv, float* memory) {
  const int64_t positions = heads.positions, width = heads.width(), keys = heads.keys();
  Scratch scratch{memory};
  const int64_t key_rows = keys * kWidth + kTileRows;
  Element* k = scratch.elements(width * keys * kWidth * kWidth);
  const Panels q = scratch.panels(width, key_rows);
  const FloatPanels dk = scratch.float_panels(width, key_rows), dv = scratch.float_panels(width, key_rows);
  const FloatPanels dq = scratch.float_panels(width, key_rows);
  Element* k_transposed = scratch.elements(width * keys * kWidth * kWidth);
  Element* v_transposed = scratch.elements(width * keys * kWidth * kWidth);
  const Panels p = scratch.panels(keys, kQueries + kTileRows), ds = scratch.panels(keys, kQueries + kTileRows);
  Element* transposed = scratch.elements(transposed_elements(keys, width, kQueries));
  float* sums = scratch.floats((kQueries + kTileRows) * kWidth);
  float* delta = scratch.floats(kQueries);
  const float scale = 1.0f / std::sqrt(static_cast<float>(heads.head_dim));

  const Panels turned{reinterpret_cast<Element*>(dk.data), positions};  // k
  heads.rope.turn(heads.part(heads.qkv, 1, batch, head), turned, 0, positions, false);
  as_right(turned, width, positions, k);
  transpose(turned, width, positions, k_transposed);
  transpose(heads.part(heads.qkv, 2, batch, head), width, positions, v_transposed);
  heads.rope.turn(heads.part(heads.qkv, 0, batch, head), q, 0, positions, false);
  const Panels dresult = dout.from(head * width, batch * positions);
  const Panels result = out.from(head * width, batch * positions);
  for (int64_t first = 0; first < positions; first += kQueries) {
    const int64_t rows = positions - first < kQueries ? positions - first : kQueries;
    const float* row_lse = lse + (batch * heads.heads + head) * positions + first;
    for (int64_t row = 0; row < rows; ++row) {
      Vec total{};
      for (int64_t panel = 0; panel < width; ++panel) {
        const Element *a = dresult.at(panel, first + row), *b = result.at(panel, first + row);
        total += load(a) * load(b) + load(a + kLanes) * load(b + kLanes);
      }
      delta[row] = sum(total);
    }
    product(q.from(0, first), width, k_transposed, keys, rows, sums,
            [&](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
              for_rows(tile, count, [&](int i, Vec* columns) HRM_ALWAYS {
                Element* to = p.at(panel, row + i);
                store(to, exp(columns[0] * scale - row_lse[row + i]));
                store(to + kLanes, exp(columns[1] * scale - row_lse[row + i]));
                for (int64_t lane = positions - panel * kWidth; lane < kWidth; ++lane) assign(to[lane], 0);
              });
            });
    product(dresult.from(0, first), width, v_transposed, keys, rows, sums,
            [&](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
              for_rows(tile, count, [&](int i, Vec* columns) HRM_ALWAYS {
                const Element* probability = p.at(panel, row + i);
                Element* to = ds.at(panel, row + i);
                store(to, load(probability) * (columns[0] - delta[row + i]) * scale);
                store(to + kLanes, load(probability + kLanes) * (columns[1] - delta[row + i]) * scale);
              });
            });
    product(ds, keys, k, width, rows, sums, keep(dq.from(0, first)));
    add_transposed_product(p, keys, dresult.from(0, first), width, rows, dv, first == 0, transposed);
    add_transposed_product(ds, keys, q.from(0, first), width, rows, dk, first == 0, transposed);
  }
  heads.rope.turn(dq, heads.part(dqkv, 0, batch, head), 0, positions, true);
  heads.rope.turn(dk, heads.part(dqkv, 1, batch, head), 0, positions, true);
  const Panels dvalues = heads.part(dqkv, 2, batch, head);
  for (int64_t panel = 0; panel < width; ++panel) {
    for (int64_t i = 0; i < positions * kWidth; i += kLanes) store(dvalues.at(panel, 0) + i, load(dv.at(panel, 0) + i));
  }
}

}  // namespace hrm::HRM_ISA
