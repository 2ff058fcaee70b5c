// Mixing of positions: a SwiGLU across the positions of each channel, added to its input and normalised over them.
//
// One task computes a piece: kWidth channels over all positions of one row of the batch, [S][kWidth] in memory. It is a
// right factor already, with the rows of the weights on the left, so nothing is transposed, and both products and the
// norm run in the cache. In panels (product.h), the rows of a panel that belong to one row of the batch are a piece.
#pragma once

#include <cmath>
#include <initializer_list>

#include "cpu/panels.h"
#include "cpu/team.h"

namespace hrm::HRM_ISA {

// A matrix [rows, columns] as a left factor: strips of kTileRows rows, [columns][kTileRows] each, with zeros after the
// last row. It starts at element `first` of the weights, row-major or transposed.
struct Strips {
  int64_t rows, columns, first;
  bool transposed;
  float* data = nullptr;

  int64_t count() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t floats() const { return count() * kTileRows * columns; }
  float* at(int64_t strip) const { return data + strip * kTileRows * columns; }

  template <class T>
  void pack(const T* weights, int64_t strip) const {
    float* to = at(strip);
    for (int64_t column = 0; column < columns; ++column) {
      for (int i = 0; i < kTileRows; ++i) {
        const int64_t row = strip * kTileRows + i;
        const int64_t element = first + (transposed ? column * rows + row : row * columns + column);
        *to++ = row < rows ? to_float(weights[element]) : 0.0f;
      }
    }
  }

  // tile += strip @ right [columns][kWidth]
  HRM_INLINE void times(int64_t strip, const float* right, Tile& tile) const {
    multiply<kTileRows>(tile, at(strip), 1, kTileRows, right, columns);
  }
};

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

HRM_INLINE void clear(Tile& tile) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) tile[i][0] = tile[i][1] = Vec{};
}

HRM_INLINE Vec inverse_root(Vec x) {
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = 1.0f / std::sqrt(x[lane]);
  return x;
}

// The three matrices of a mixing, packed for the forward or, transposed, for the backward.
struct MixingStrips {
  Strips gate, up, down;

  int64_t packed() const { return gate.floats() + up.floats() + down.floats(); }
  void place(float* memory) {
    Scratch scratch{memory};
    for (Strips* strips : {&gate, &up, &down}) strips->data = scratch.floats(strips->floats());
  }
  template <class T>
  void pack(const T* gate_up_weights, const T* down_weights, Team::Member& team) const {
    pack_strips<T>({{gate, gate_up_weights}, {up, gate_up_weights}, {down, down_weights}}, team);
  }
};

// The forward of one piece, with gate_up [2 I, S] and down [S, I].
struct Mixer : MixingStrips {
  int64_t positions, inner;
  float eps;

  Mixer(int64_t positions_, int64_t inner_, float eps_)
      : MixingStrips{{inner_, positions_, 0, false},
                     {inner_, positions_, inner_ * positions_, false},
                     {positions_, inner_, 0, false}},
        positions(positions_),
        inner(inner_),
        eps(eps_) {}

  int64_t hidden_floats() const { return gate.count() * kTileRows * kWidth; }

  // state [S][kWidth] -> hidden [I][kWidth]; calls `each` with gate and up for each offset of hidden.
  template <class Each>
  HRM_INLINE void widen(const float* state, float* hidden, Each each) const {
    int64_t at = 0;
    for (int64_t strip = 0; strip < gate.count(); ++strip) {
      Tile g, u;
      clear(g);
      gate.times(strip, state, g);
      clear(u);
      up.times(strip, state, u);
      for (int i = 0; i < kTileRows; ++i) {
        for (int half = 0; half < 2; ++half, at += kLanes) {
          store(hidden + at, g[i][half] * sigmoid(g[i][half]) * u[i][half]);
          each(at, g[i][half], u[i][half]);
        }
      }
    }
  }

  // Computes y [S][kWidth], which may be the memory of state, from state and hidden; rstd [kWidth]: 1 / rms.
  HRM_INLINE void narrow(const float* state, const float* hidden, float* y, float* rstd) const {
    Vec squares[2] = {};
    for (int64_t strip = 0; strip < down.count(); ++strip) {
      Tile tile;
      clear(tile);
      down.times(strip, hidden, tile);
      for_rows(tile, positions - strip * kTileRows, [&](int i, Vec* columns) HRM_ALWAYS {
        for (int half = 0; half < 2; ++half) {
          const int64_t at = (strip * kTileRows + i) * kWidth + half * kLanes;
          const Vec sum = load(state + at) + columns[half];
          squares[half] += sum * sum;
          store(y + at, sum);
        }
      });
    }
    for (int half = 0; half < 2; ++half) {
      const Vec scale = inverse_root(squares[half] / static_cast<float>(positions) + eps);
      store(rstd + half * kLanes, scale);
      for (int64_t at = half * kLanes; at < positions * kWidth; at += kWidth) store(y + at, load(y + at) * scale);
    }
  }
};

// The backward of one piece. It computes gate, up and hidden again; x, y and rstd are those of the forward.
struct MixerGradient : MixingStrips {
  explicit MixerGradient(const Mixer& mixer)
      : MixingStrips{{mixer.positions, mixer.inner, 0, true},
                     {mixer.positions, mixer.inner, mixer.inner * mixer.positions, true},
                     {mixer.inner, mixer.positions, 0, true}} {}

  // dy -> du in place, with y = u * rstd over the positions: du = rstd * (dy - y * mean(dy * y))
  HRM_INLINE void norm(const Mixer& mixer, const float* y, const float* rstd, float* dy) const {
    for (int half = 0; half < 2; ++half) {
      const int64_t first = half * kLanes, end = mixer.positions * kWidth;
      const Vec scale = load(rstd + first);
      Vec products{};
      for (int64_t at = first; at < end; at += kWidth) products += load(dy + at) * load(y + at);
      const Vec mean = products / static_cast<float>(mixer.positions);
      for (int64_t at = first; at < end; at += kWidth) {
        store(dy + at, (load(dy + at) - load(y + at) * mean) * scale);
      }
    }
  }

  // Computes the gradients of gate and of up, [I][kWidth], from du and from gate and up, which they replace.
  HRM_INLINE void hidden(const float* du, float* dgate, float* dup) const {
    int64_t at = 0;
    for (int64_t strip = 0; strip < down.count(); ++strip) {
      Tile d;
      clear(d);
      down.times(strip, du, d);
      for (int i = 0; i < kTileRows; ++i) {
        for (int half = 0; half < 2; ++half, at += kLanes) {
          const Vec g = load(dgate + at), s = sigmoid(g), silu = g * s;
          store(dgate + at, d[i][half] * load(dup + at) * (s + silu * (1.0f - s)));
          store(dup + at, d[i][half] * silu);
        }
      }
    }
  }

  // Calls each(position, lanes [kWidth]) with the gradient of x.
  template <class Each>
  HRM_INLINE void input(const float* du, const float* dgate, const float* dup, Each each) const {
    for (int64_t strip = 0; strip < gate.count(); ++strip) {
      Tile tile;
      clear(tile);
      gate.times(strip, dgate, tile);
      up.times(strip, dup, tile);
      for_rows(tile, gate.rows - strip * kTileRows, [&](int i, Vec* columns) HRM_ALWAYS {
        const int64_t s = strip * kTileRows + i;
        float lanes[kWidth];
        for (int half = 0; half < 2; ++half) {
          store(lanes + half * kLanes, load(du + s * kWidth + half * kLanes) + columns[half]);
        }
        each(s, lanes);
      });
    }
  }
};

// Sums the gradients of the weights over pieces, group by group in a fixed order.
//
// Each piece of a group stores its gradients of gate and up and its hidden, [I][kWidth] each, and x and du, transposed.
// The sums follow from these, [I][kWidth] for each panel of positions: of gate, of up, and of down transposed.
struct MixingSums {
  static constexpr int64_t kGroup = 64;  // kTileRows rows of each stay in an L1 cache; memory does not grow with B

  int64_t positions, inner, group, panels, inside, across;
  float *left = nullptr, *right = nullptr, *sums = nullptr;

  MixingSums(const Mixer& mixer, int64_t pieces)
      : positions(mixer.positions),
        inner(mixer.inner),
        group(pieces < kGroup ? pieces : kGroup),
        panels(panels_for(positions)),
        inside(mixer.hidden_floats()),
        across(panels * kWidth * kWidth) {}

  int64_t floats() const { return group * (3 * inside + 2 * across) + 3 * panels * inside; }
  void place(float* memory) {
    Scratch scratch{memory};
    left = scratch.floats(group * 3 * inside);   // [piece][dgate, dup, hidden]
    right = scratch.floats(group * 2 * across);  // [piece][x, du]
    sums = scratch.floats(3 * panels * inside);  // [dgate, dup, ddown][panel]
  }

  float* dgate(int64_t piece) const { return left + piece * 3 * inside; }
  float* dup(int64_t piece) const { return dgate(piece) + inside; }
  float* hidden(int64_t piece) const { return dup(piece) + inside; }

  void keep(int64_t piece, const float* x, const float* du) const {
    float* to = right + piece * 2 * across;
    const FloatPanels from_x{const_cast<float*>(x), positions}, from_du{const_cast<float*>(du), positions};
    for (int64_t first = 0; first < positions; first += kWidth, to += kWidth * kWidth) {
      transpose_panel(from_x, 1, first, positions, to);
      transpose_panel(from_du, 1, first, positions, to + across);
    }
  }

  // Adds a group of `count` pieces, one strip of a matrix per task.
  int64_t tasks() const { return 3 * (inside / (kTileRows * kWidth)); }
  void add(int64_t task, int64_t count, bool fresh) const {
    const int64_t which = task % 3, strip = task / 3;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const float* l = left + which * inside + strip * kTileRows * kWidth;
      const float* r = right + which / 2 * across + panel * kWidth * kWidth;
      float* to = sums + (which * panels + panel) * inside + strip * kTileRows * kWidth;
      Tile tile;
      clear(tile);
      for (int64_t i = 0; i < count; ++i, l += 3 * inside, r += 2 * across) {
        multiply<kTileRows>(tile, l, kWidth, 1, r, kWidth);
      }
      for (int i = 0; i < kTileRows; ++i) {
        for (int half = 0; half < 2; ++half, to += kLanes) {
          store(to, fresh ? tile[i][half] : load(to) + tile[i][half]);
        }
      }
    }
  }

  // Writes row `row` of the inner dimension to the gradients of gate_up and down, unless they are nullptr.
  template <class T>
  void write(int64_t row, T* dgate_up, T* ddown) const {
    for (int64_t s = 0; s < positions; ++s) {
      const float* from = sums + s / kWidth * inside + row * kWidth + s % kWidth;
      if (dgate_up) {
        assign(dgate_up[row * positions + s], from[0]);
        assign(dgate_up[(inner + row) * positions + s], from[panels * inside]);
      }
      if (ddown) assign(ddown[s * inner + row], from[2 * panels * inside]);
    }
  }
};

}  // namespace hrm::HRM_ISA
