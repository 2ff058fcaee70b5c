// A SwiGLU across the positions of each channel, added to its input and normalised over the positions.
//
// One task computes a piece: kWidth channels over all positions. In memory it is a right factor [S][kWidth] already,
// with the rows of the weights on the left, so nothing is transposed, and both products and the norm run in the cache.
#include <cmath>
#include <initializer_list>

#include "cpu/kernels.h"
#include "cpu/panels.h"
#include "cpu/tables.h"
#include "cpu/team.h"

namespace hrm::HRM_ISA {
namespace {

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

HRM_INLINE void clear(Tile& tile) {
#pragma GCC unroll 16
  for (int i = 0; i < kTileRows; ++i) tile[i][0] = tile[i][1] = Vec{};
}

struct Sizes {
  int64_t batch, positions, dim, inner;
  int64_t panels() const { return panels_for(dim); }
  int64_t pieces() const { return batch * panels(); }  // kWidth channels of one row of the batch
  Strips gate() const { return {inner, positions, 0, false}; }
  Strips up() const { return {inner, positions, inner * positions, false}; }
};

// The location of a piece in x, or in a tensor of its shape, and its number of channels.
struct Piece {
  int64_t start, step, positions, channels;
  Piece(const Sizes& sizes, int64_t index)
      : start(index / sizes.panels() * sizes.positions * sizes.dim + index % sizes.panels() * kWidth),
        step(sizes.dim),
        positions(sizes.positions),
        channels(sizes.dim - index % sizes.panels() * kWidth) {}

  // Loads all positions into to [S][kWidth], with zeros for missing channels.
  template <class T>
  void read(const void* matrix, float* to) const {
    const T* from = static_cast<const T*>(matrix) + start;
    for (int64_t s = 0; s < positions; ++s, from += step, to += kWidth) {
      if (channels >= kWidth) {
        store(to, load(from));
        store(to + kLanes, load(from + kLanes));
        continue;
      }
      for (int64_t lane = 0; lane < kWidth; ++lane) to[lane] = lane < channels ? to_float(from[lane]) : 0.0f;
    }
  }
  // Stores one position from lanes [kWidth].
  template <class T>
  void write(T* matrix, int64_t position, const float* lanes) const {
    T* to = matrix + start + position * step;
    if (channels >= kWidth) {
      store(to, load(lanes));
      store(to + kLanes, load(lanes + kLanes));
      return;
    }
    for (int64_t lane = 0; lane < channels; ++lane) assign(to[lane], lanes[lane]);
  }
};

HRM_INLINE Vec inverse_root(Vec x) {
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = 1.0f / std::sqrt(x[lane]);
  return x;
}

// Packs matrices, one strip per task.
struct Matrix {
  Strips strips;
  const void* weights;
};
template <class T, size_t Count>
void pack_all(const Matrix (&matrices)[Count], Team::Member& team) {
  int64_t most = 0;
  for (const Matrix& m : matrices) most = m.strips.count() > most ? m.strips.count() : most;
  team.for_each(most * static_cast<int64_t>(Count), [&](int64_t task) {
    const Matrix& m = matrices[task % Count];
    const int64_t strip = task / static_cast<int64_t>(Count);
    if (strip < m.strips.count()) m.strips.pack(static_cast<const T*>(m.weights), strip);
  });
}

// Computes the forward of one piece.
struct Mixer {
  Strips gate, up, down;
  int64_t positions;
  float eps;

  Mixer(const Sizes& sizes, float eps_)
      : gate(sizes.gate()),
        up(sizes.up()),
        down{sizes.positions, sizes.inner, 0, false},
        positions(sizes.positions),
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

  // Computes y [S][kWidth] from state and hidden; returns 1 / rms.
  HRM_INLINE void narrow(const float* state, const float* hidden, float* y, Vec (&rstd)[2]) const {
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
      rstd[half] = inverse_root(squares[half] / static_cast<float>(positions) + eps);
      for (int64_t at = half * kLanes; at < positions * kWidth; at += kWidth) store(y + at, load(y + at) * rstd[half]);
    }
  }
};

void forward(int64_t batch, int64_t positions, int64_t dim, int64_t inner, const void* x, const void* gate_up,
             const void* down, float eps, void* out, int dtype, int threads) {
  const Sizes sizes{batch, positions, dim, inner};
  Mixer mixer(sizes, eps);
  const int64_t each = 2 * positions * kWidth + mixer.hidden_floats();
  Scratch scratch{workspace(threads * each + mixer.gate.floats() + mixer.up.floats() + mixer.down.floats())};
  float* memory = scratch.floats(threads * each);
  for (Strips* strips : {&mixer.gate, &mixer.up, &mixer.down}) strips->data = scratch.floats(strips->floats());

  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    parallel(threads, [&](Team::Member& team) {
      pack_all<T>({{mixer.gate, gate_up}, {mixer.up, gate_up}, {mixer.down, down}}, team);
      Scratch own{memory + team.rank() * each};
      float *state = own.floats(positions * kWidth), *y = own.floats(positions * kWidth), *hidden = own.next;
      team.for_each(sizes.pieces(), [&](int64_t index) {
        const Piece piece(sizes, index);
        piece.read<T>(x, state);
        mixer.widen(state, hidden, [](int64_t, Vec, Vec) {});
        Vec rstd[2];
        mixer.narrow(state, hidden, y, rstd);
        for (int64_t s = 0; s < positions; ++s) piece.write(static_cast<T*>(out), s, y + s * kWidth);
      });
    });
  });
}

// Each piece of a group stores its gradients of gate and up and its hidden, [I][kWidth], and x and du, transposed.
// The sums of the weight gradients follow from these, [I][kWidth] for each panel of positions: of gate, of up, and of
// down transposed.
constexpr int64_t kGroup = 64;  // pieces; kTileRows rows of each stay in an L1 cache, and memory does not grow with B

void backward(int64_t batch, int64_t positions, int64_t dim, int64_t inner, const void* dout, const void* x,
              const void* gate_up, const void* down, float eps, void* dx, void* dgate_up, void* ddown, int dtype,
              int threads) {
  const Sizes sizes{batch, positions, dim, inner};
  Mixer mixer(sizes, eps);
  Strips down_t{inner, positions, 0, true}, gate_t{positions, inner, 0, true};
  Strips up_t{positions, inner, inner * positions, true};
  Strips* const all[] = {&mixer.gate, &mixer.up, &mixer.down, &down_t, &gate_t, &up_t};
  const int64_t panels = panels_for(positions), across = panels * kWidth * kWidth, inside = mixer.hidden_floats();
  const int64_t group = sizes.pieces() < kGroup ? sizes.pieces() : kGroup;
  const int64_t each = 3 * positions * kWidth;
  int64_t floats = threads * each + group * (3 * inside + 2 * across) + 3 * panels * inside;
  for (const Strips* strips : all) floats += strips->floats();
  Scratch scratch{workspace(floats)};
  float* memory = scratch.floats(threads * each);
  float* left = scratch.floats(group * 3 * inside);   // [piece][dgate, dup, hidden]
  float* right = scratch.floats(group * 2 * across);  // [piece][x, du]
  float* sums = scratch.floats(3 * panels * inside);  // [dgate, dup, ddown][panel]
  for (Strips* strips : all) strips->data = scratch.floats(strips->floats());

  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    parallel(threads, [&](Team::Member& team) {
      pack_all<T>({{mixer.gate, gate_up},
                   {mixer.up, gate_up},
                   {mixer.down, down},
                   {down_t, down},
                   {gate_t, gate_up},
                   {up_t, gate_up}},
                  team);
      Scratch own{memory + team.rank() * each};
      float *state = own.floats(positions * kWidth), *y = own.floats(positions * kWidth), *du = own.next;

      const auto differentiate = [&](const Piece& piece, float* dgate, float* across_x) {
        float *dup = dgate + inside, *hidden = dup + inside;
        piece.read<T>(x, state);
        piece.read<T>(dout, du);
        mixer.widen(state, hidden, [&](int64_t at, Vec g, Vec u) HRM_ALWAYS {
          store(dgate + at, g);
          store(dup + at, u);
        });
        Vec rstd[2];
        mixer.narrow(state, hidden, y, rstd);
        for (int half = 0; half < 2; ++half) {  // du = rstd * (dy - y * mean(dy * y))
          const int64_t first = half * kLanes, end = positions * kWidth;
          Vec products{};
          for (int64_t at = first; at < end; at += kWidth) products += load(du + at) * load(y + at);
          const Vec mean = products / static_cast<float>(positions);
          for (int64_t at = first; at < end; at += kWidth) {
            store(du + at, (load(du + at) - load(y + at) * mean) * rstd[half]);
          }
        }
        int64_t at = 0;
        for (int64_t strip = 0; strip < down_t.count(); ++strip) {
          Tile d;
          clear(d);
          down_t.times(strip, du, d);
          for (int i = 0; i < kTileRows; ++i) {
            for (int half = 0; half < 2; ++half, at += kLanes) {
              const Vec g = load(dgate + at), s = sigmoid(g), silu = g * s;
              store(dgate + at, d[i][half] * load(dup + at) * (s + silu * (1.0f - s)));
              store(dup + at, d[i][half] * silu);
            }
          }
        }
        for (int64_t strip = 0; strip < gate_t.count(); ++strip) {
          Tile tile;
          clear(tile);
          gate_t.times(strip, dgate, tile);
          up_t.times(strip, dup, tile);
          for_rows(tile, positions - strip * kTileRows, [&](int i, Vec* columns) HRM_ALWAYS {
            const int64_t s = strip * kTileRows + i;
            float lanes[kWidth];
            for (int half = 0; half < 2; ++half) {
              store(lanes + half * kLanes, load(du + s * kWidth + half * kLanes) + columns[half]);
            }
            piece.write(static_cast<T*>(dx), s, lanes);
          });
        }
        for (int64_t first = 0; first < positions; first += kWidth, across_x += kWidth * kWidth) {
          transpose_panel({state, positions}, 1, first, positions, across_x);
          transpose_panel({du, positions}, 1, first, positions, across_x + across);
        }
      };

      for (int64_t first = 0; first < sizes.pieces(); first += group) {
        const int64_t count = sizes.pieces() - first < group ? sizes.pieces() - first : group;
        team.for_each(count, [&](int64_t i) {
          differentiate(Piece(sizes, first + i), left + i * 3 * inside, right + i * 2 * across);
        });
        team.for_each(3 * down_t.count(), [&](int64_t task) {
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
                store(to, first ? load(to) + tile[i][half] : tile[i][half]);
              }
            }
          }
        });
      }
      team.for_each(inner, [&](int64_t row) {
        for (int64_t s = 0; s < positions; ++s) {
          const float* from = sums + s / kWidth * inside + row * kWidth + s % kWidth;
          assign(static_cast<T*>(dgate_up)[row * positions + s], from[0]);
          assign(static_cast<T*>(dgate_up)[(inner + row) * positions + s], from[panels * inside]);
          assign(static_cast<T*>(ddown)[s * inner + row], from[2 * panels * inside]);
        }
      });
    });
  });
}

}  // namespace

void add_token_mixing(hrm_cpu_kernels& table) {
  table.token_mixing_forward = forward;
  table.token_mixing_backward = backward;
}

}  // namespace hrm::HRM_ISA
