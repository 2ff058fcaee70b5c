// Whole passes: the blocks of a module, or all updates of a segment, forward and backward.
//
// Between two attentions the rows are independent, so one task computes a group of rows through the output projection,
// norm, SwiGLU, norm, and the next block's qkv: two barriers per block, whatever the number of products. Where blocks
// mix positions instead, the tasks alternate between kWidth channels of all positions, and groups of rows. A ConvSwiGLU
// reads the row before a group, which another task computes: a third barrier per block.
#include <initializer_list>
#include <utility>

#include "cpu/attention.h"
#include "cpu/cache.h"
#include "cpu/convolution.h"
#include "cpu/damping.h"
#include "cpu/kernels.h"
#include "cpu/mixing.h"
#include "cpu/movement.h"
#include "cpu/norm.h"
#include "cpu/rows.h"
#include "cpu/tables.h"

namespace hrm::HRM_ISA {
namespace {

// Sizes in panels, and the offset of each matrix in a packed block.
struct Geometry {
  hrm_shape shape;
  int64_t rows;                                // batch * positions
  int64_t stride;                              // of panels: odd, so that the panels of a row use different cache sets
  Columns dim, qkv, attended, gate_up, inner;  // without attention, qkv and attended have no columns
  Mixer mixer;                                 // without its weights

  explicit Geometry(const hrm_shape& s)
      : shape(s),
        rows(s.batch * s.positions),
        stride((rows + kTileRows) | 1),
        dim{1, s.dim},
        qkv{3 * s.heads, s.head_dim},
        attended{s.heads, s.head_dim},
        gate_up{1, s.inner, true},
        inner{1, s.inner},
        mixer(s.positions, s.mixing, s.eps) {}

  bool mixes() const { return shape.mixing > 0; }
  bool convolves() const { return shape.convolves; }
  Convolution convolution(const float* taps) const { return {shape.positions, inner, taps}; }
  int64_t pieces() const { return shape.batch * dim.panels(); }

  // The most rows of a task: the state and the inner rows of SwiGLU fill three quarters of an L2 cache. Each task reads
  // all weights.
  int64_t row_block() const {
    const int64_t row = static_cast<int64_t>(sizeof(Element)) * kWidth * (dim.panels() + inner.panels());
    const int64_t count = l2_cache() * 3 / 4 / row / kTileRows * kTileRows;
    return count < kTileRows ? kTileRows : count;
  }
  // Divides the rows into tasks of whole grains that differ by at most one grain, so that no thread waits long.
  int64_t grains() const { return (rows + kRowGrain - 1) / kRowGrain; }
  int64_t blocks(int threads) const {
    const int64_t most = threads * row_block(), count = (rows + most - 1) / most * threads;
    return count < grains() ? count : grains();
  }
  int64_t block_rows(int64_t blocks) const { return blocks ? (grains() + blocks - 1) / blocks * kRowGrain : 0; }
  int64_t block_start(int64_t block, int64_t blocks) const {
    const int64_t start = block * grains() / blocks * kRowGrain;
    return start < rows ? start : rows;
  }
  // Sizes in elements.
  int64_t matrix(Columns outputs, Columns inputs) const { return outputs.panels() * inputs.panels() * kWidth * kWidth; }
  int64_t mixing() const {  // the packed matrices that mix, in the larger of both directions
    const int64_t forward = mixer.packed(), backward = MixerGradient(mixer).packed();
    return mixes() ? whole(forward > backward ? forward : backward) : 0;
  }
  int64_t packed() const {
    return mixing() + matrix(qkv, dim) + matrix(dim, attended) + matrix(gate_up, dim) + matrix(dim, inner) + taps();
  }
  int64_t taps() const {  // of a ConvSwiGLU, which are float32
    constexpr int64_t kElements = sizeof(float) / sizeof(Element);
    return convolves() ? convolution(nullptr).floats() * kElements : 0;
  }
  // Sizes in floats.
  int64_t floats(Columns columns) const { return floats_for(columns.panels() * stride * kWidth); }
  int64_t activated_floats() const { return convolves() ? floats(inner) : 0; }
  static int64_t whole(int64_t count) { return (count + kWidth - 1) / kWidth * kWidth; }
  int64_t rstd1_floats() const { return mixes() ? pieces() * kWidth : whole(rows); }  // of each channel, or row
  int64_t rstd2_floats() const { return whole(rows); }
  int64_t lse_floats() const { return whole(rows * shape.heads); }
  Heads heads(Panels from, const float* cos, const float* sin) const {
    return {from, shape.positions, shape.heads, shape.head_dim, {cos, sin, shape.head_dim}};
  }
};

// The matrices of a packed block.
struct Packed {
  const Element *mixing, *qkv, *o, *gate_up, *down;
  const float* taps;
  Packed(const Geometry& g, const float* base, int64_t layer) {
    mixing = reinterpret_cast<const Element*>(base) + layer * g.packed();
    qkv = mixing + g.mixing();
    o = qkv + g.matrix(g.qkv, g.dim);
    gate_up = o + g.matrix(g.dim, g.attended);
    down = gate_up + g.matrix(g.gate_up, g.dim);
    taps = reinterpret_cast<const float*>(down + g.matrix(g.dim, g.inner));
  }
};

// The input, intermediate results and output of one block. Without gradients in, middle and out are the same memory,
// and pointers that only the backward reads are nullptr.
struct Layer {
  Packed weights;
  Panels in, qkv, attended, middle, gate_up, out;
  float *rstd1, *rstd2, *lse;
  Panels activated;               // silu(gate) * up, for a ConvSwiGLU
  Panels injection, injection2;   // added to `in` first; data is nullptr for none
  Panels start{nullptr, 0};       // what `in` is without the injection; data is nullptr where `in` holds it
  Damped damped{};                // of the last block of a damped update
  const float* scales = nullptr;  // of a pre-norm block (hrm_scales); nullptr for post-norm
};

// dy -> du in place, with y = u * rstd: du = rstd * (dy - y * mean(dy * y))
HRM_INLINE void norm_row_backward(Panels dy, Panels y, int64_t panels, int64_t row, int64_t columns, float rstd) {
  Vec products{}, more{};
  for (int64_t p = 0; p < panels; ++p) {
    const Element *a = dy.at(p, row), *b = y.at(p, row);
    products += load(a) * load(b);
    more += load(a + kLanes) * load(b + kLanes);
  }
  const float mean = sum(products + more) / static_cast<float>(columns);
  for (int64_t p = 0; p < panels; ++p) {
    Element* a = dy.at(p, row);
    const Element* b = y.at(p, row);
    store(a, (load(a) - load(b) * mean) * rstd);
    store(a + kLanes, (load(a + kLanes) - load(b + kLanes) * mean) * rstd);
  }
}

// Adds the injection to rows of a panel; rounded once.
// `dim`: padded columns of the state.
HRM_INLINE void inject(const Layer& layer, int64_t dim, int64_t panel, int64_t first, int64_t rows) {
  if (!layer.injection.data) return;
  Element* to = layer.in.at(panel, first);
  const Element* from = layer.start.data ? layer.start.at(panel, first) : to;
  const Element* one = layer.injection.at(panel, first);
  const Element* two = layer.injection2.data ? layer.injection2.at(panel, first) : nullptr;
  if (const float* scales = layer.scales) {
    const float *of_start = scales + HRM_START * dim + panel * kWidth,
                *of_injection = of_start + (HRM_INJECT - HRM_START) * dim;
    for (int64_t i = 0; i < rows * kWidth; i += kLanes) {
      const Vec injected = two ? load(one + i) + load(two + i) : load(one + i);
      store(to + i, load(from + i) * load(of_start + i % kWidth) + injected * load(of_injection + i % kWidth));
    }
    return;
  }
  for (int64_t i = 0; i < rows * kWidth; i += kLanes) {
    const Vec start = two ? load(from + i) + load(two + i) : load(from + i);
    store(to + i, start + load(one + i));
  }
}

// The norms of rows of a state; the state stays.
HRM_INLINE Panels normed_rows(const Geometry& g, Panels x, int64_t rows, Panels to) {
  for (int64_t row = 0; row < rows; ++row) norm_row_to(x, to, g.dim.panels(), row, g.shape.dim, g.shape.eps);
  return to;
}
// x = keep * x for rows of a state.
HRM_INLINE void keep_rows(const Geometry& g, Panels x, int64_t rows, const float* scales) {
  for (int64_t panel = 0; panel < g.dim.panels(); ++panel) {
    const float* scale = scales + HRM_KEEP * g.dim.panels() * kWidth + panel * kWidth;
    Element* to = x.at(panel, 0);
    for (int64_t i = 0; i < rows * kWidth; i += kLanes) store(to + i, load(to + i) * load(scale + i % kWidth));
  }
}

// Computes rows [first, first + rows) of a block up to its attention: the injection and qkv. normed: panels of the
// state for `rows` rows, for pre-norm blocks.
inline void head(const Geometry& g, const Layer& layer, int64_t first, int64_t rows, Panels normed, float* sums) {
  const int64_t dim = g.dim.panels();
  for (int64_t p = 0; p < dim; ++p) inject(layer, dim * kWidth, p, first, rows);
  const Panels in = layer.in.from(0, first), x = layer.scales ? normed_rows(g, in, rows, normed) : in;
  product(x, dim, layer.weights.qkv, g.qkv.panels(), rows, sums, keep(layer.qkv.from(0, first)));
}

// Computes the same rows of a pre-norm block, in place, from the attention to the block's output.
inline void tail_of_pre_norm(const Geometry& g, const Layer& layer, int64_t first, int64_t rows, Panels hidden,
                             Panels normed, float* sums) {
  const int64_t dim = g.dim.panels();
  const Panels x = layer.out.from(0, first);
  keep_rows(g, x, rows, layer.scales);
  product_plus(layer.attended.from(0, first), g.attended.panels(), layer.weights.o, dim, rows, sums, x, x);
  product(normed_rows(g, x, rows, normed), dim, layer.weights.gate_up, g.gate_up.panels(), rows, sums,
          [&](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
            for_rows(tile, count, [&](int i, Vec* columns) HRM_ALWAYS {
              store(hidden.at(panel / 2, row + i) + panel % 2 * kLanes, columns[0] * sigmoid(columns[0]) * columns[1]);
            });
          });
  keep_rows(g, x, rows, layer.scales);
  product_plus(hidden, g.inner.panels(), layer.weights.down, dim, rows, sums, x, x);
  for (int64_t row = 0; row < rows && layer.damped.damping; ++row) {
    layer.damped.blend(layer.out, first + row, g.shape.positions, g.shape.dim);
  }
}

// Computes these rows from the attention, or the mixing, to the SwiGLU, into `hidden`.
inline void compute_hidden(const Geometry& g, const Layer& layer, int64_t first, int64_t rows, Panels hidden,
                           float* sums) {
  const int64_t dim = g.dim.panels();
  const Panels in = layer.in.from(0, first), middle = layer.middle.from(0, first);
  if (!g.mixes()) {
    product_plus(layer.attended.from(0, first), g.attended.panels(), layer.weights.o, dim, rows, sums, in, middle);
    for (int64_t row = 0; row < rows; ++row) {
      const float rstd = norm_row(middle, dim, row, g.shape.dim, g.shape.eps);
      if (layer.rstd1) layer.rstd1[first + row] = rstd;
    }
  }
  const Panels gate_up = layer.gate_up.data ? layer.gate_up.from(0, first) : layer.gate_up;
  product(middle, dim, layer.weights.gate_up, g.gate_up.panels(), rows, sums,
          [&](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
            for_rows(tile, count, [&](int i, Vec* columns) HRM_ALWAYS {
              store(hidden.at(panel / 2, row + i) + panel % 2 * kLanes, columns[0] * sigmoid(columns[0]) * columns[1]);
              if (gate_up.data) {
                store(gate_up.at(panel, row + i), columns[0]);
                store(gate_up.at(panel, row + i) + kLanes, columns[1]);
              }
            });
          });
}

// Computes these rows from `hidden` to the block's output.
inline void compute_output(const Geometry& g, const Layer& layer, int64_t first, int64_t rows, Panels hidden,
                           float* sums) {
  const int64_t dim = g.dim.panels();
  const Panels out = layer.out.from(0, first);
  product_plus(hidden, g.inner.panels(), layer.weights.down, dim, rows, sums, layer.middle.from(0, first), out);
  for (int64_t row = 0; row < rows; ++row) {
    const float rstd = norm_row(out, dim, row, g.shape.dim, g.shape.eps);
    if (layer.rstd2) layer.rstd2[first + row] = rstd;
    if (layer.damped.damping) layer.damped.blend(layer.out, first + row, g.shape.positions, g.shape.dim);
  }
}

// Computes these rows from the attention, the mixing or the convolution's input to the block's output. hidden: panels
// of the inner size for `rows` rows; normed: of the state, for pre-norm blocks.
inline void tail(const Geometry& g, const Layer& layer, int64_t first, int64_t rows, Panels hidden, Panels normed,
                 float* sums) {
  if (layer.scales) return tail_of_pre_norm(g, layer, first, rows, hidden, normed, sums);
  if (g.convolves()) {
    g.convolution(layer.weights.taps).forward(layer.activated, first, rows, hidden);
  } else {
    compute_hidden(g, layer, first, rows, hidden, sums);
  }
  compute_output(g, layer, first, rows, hidden, sums);
}

// Computes a piece of a block up to the norm after its mixing, in this thread's memory.
inline void mix(const Geometry& g, const Layer& layer, int64_t piece, float* memory) {
  const int64_t panel = piece % g.dim.panels(), first = piece / g.dim.panels() * g.shape.positions;
  Mixer mixer = g.mixer;
  mixer.place(const_cast<Element*>(layer.weights.mixing));
  inject(layer, g.dim.panels() * kWidth, panel, first, g.shape.positions);
  float unused[kWidth];
  mixer.forward(layer.in.at(panel, first), memory, layer.middle.at(panel, first),
                layer.rstd1 ? layer.rstd1 + piece * kWidth : unused, nullptr);
}

// Scratch memory of each thread.
struct ThreadMemory {
  float* base;
  int64_t each, inner_panels, blocks, rows;  // rows: of the largest task, plus one tile
  int64_t dim_panels;                        // for the norms of pre-norm blocks; else 0

  ThreadMemory(const Geometry& g, int threads, bool backward, bool pre_norm = false)
      : base(nullptr), blocks(g.blocks(threads)), rows(g.block_rows(blocks) + kTileRows) {
    const Heads heads = g.heads({nullptr, 0}, nullptr, nullptr);
    inner_panels = g.inner.panels();
    dim_panels = pre_norm ? g.dim.panels() : 0;
    const int64_t hidden =
        floats_for(inner_panels * rows * kWidth) + floats_for(dim_panels * rows * kWidth) + rows * kWidth;
    const int64_t across = g.mixes()  ? mixing_floats(g.mixer)
                           : backward ? heads.backward_scratch()
                                      : heads.forward_scratch();
    each = ((hidden > across ? hidden : across) + 4 * kWidth) / kWidth * kWidth;
  }
  float* of(int rank) const { return base + rank * each; }

 private:
  static int64_t mixing_floats(const Mixer& mixer) {  // of both directions
    const int64_t forward = Mixer::Memory::floats(mixer), backward = MixerGradient::Memory::floats(mixer);
    const int64_t sums = MixingSums::memory_floats();
    const int64_t most = forward > backward ? forward : backward;
    return most > sums ? most : sums;
  }
};

// Runs layers one after another; `layer(i)` returns layer i.
template <class LayerAt>
void run_layers(const Geometry& g, int64_t count, const ThreadMemory& memory, Team::Member& team, const float* cos,
                const float* sin, LayerAt layer) {
  const int64_t blocks = memory.blocks;
  float* own = memory.of(team.rank());
  Scratch scratch{own};
  const Panels hidden = scratch.panels(memory.inner_panels, memory.rows);
  const Panels normed = scratch.panels(memory.dim_panels, memory.rows);
  float* sums = scratch.next;
  const auto rows_of = [&](auto compute) {  // compute(first, rows) for each task's rows
    team.for_each(blocks, [&](int64_t task) {
      const int64_t first = g.block_start(task, blocks);
      compute(first, g.block_start(task + 1, blocks) - first);
    });
  };
  if (g.mixes()) {
    for (int64_t i = 0; i < count; ++i) {
      const Layer now = layer(i);
      team.for_each(g.pieces(), [&](int64_t piece) { mix(g, now, piece, own); });
      rows_of([&](int64_t first, int64_t rows) { tail(g, now, first, rows, hidden, normed, sums); });
    }
    return;
  }
  for (int64_t i = 0; i <= count; ++i) {
    rows_of([&](int64_t first, int64_t rows) {
      if (i > 0) tail(g, layer(i - 1), first, rows, hidden, normed, sums);
      if (i < count) head(g, layer(i), first, rows, normed, sums);
    });
    if (i == count) break;
    const Layer now = layer(i);
    const Heads heads = g.heads(now.qkv, cos, sin);
    team.for_each(g.shape.batch * g.shape.heads, [&](int64_t task) {
      attend(heads, task / g.shape.heads, task % g.shape.heads, now.attended, now.lse, own);
    });
    if (g.convolves()) {
      rows_of([&](int64_t first, int64_t rows) {
        compute_hidden(g, now, first, rows, now.activated.from(0, first), sums);
      });
    }
  }
}

int64_t packed_size(hrm_shape shape) { return floats_for(Geometry(shape).packed()); }

void pack_blocks(hrm_shape shape, const hrm_weights* weights, int64_t layers, int dtype, int backward, float* packed,
                 int threads) {
  const Geometry g(shape);
  struct Matrix {
    const void* weights;
    Columns outputs, inputs;
    const Element* packed;
  };
  const auto matrix = [&](int64_t layer, int which) {
    const hrm_weights& w = weights[layer];
    const Packed to(g, packed, layer);
    const Matrix all[4] = {{w.qkv, g.qkv, g.dim, to.qkv},
                           {w.o, g.dim, g.attended, to.o},
                           {w.gate_up, g.gate_up, g.dim, to.gate_up},
                           {w.down, g.dim, g.inner, to.down}};
    return all[which];
  };
  int64_t most = 0;
  for (int which = 0; which < 4; ++which) {
    const Matrix m = matrix(0, which);
    const int64_t panels = backward ? m.inputs.panels() : m.outputs.panels();
    most = panels > most ? panels : most;
  }
  parallel(threads, [&](Team::Member& team) {
    team.for_each(layers * 4 * most, [&](int64_t task) {
      const Matrix m = matrix(task / most / 4, static_cast<int>(task / most % 4));
      const int64_t panel = task % most;
      if (panel >= (backward ? m.inputs.panels() : m.outputs.panels())) return;
      const int64_t depth = backward ? m.outputs.panels() : m.inputs.panels();
      Element* to = const_cast<Element*>(m.packed) + panel * depth * kWidth * kWidth;
      with_type(dtype, [&](auto type) {
        const auto* from = static_cast<const decltype(type)*>(m.weights);
        backward ? pack_for_inputs(from, m.outputs, m.inputs, panel, to)
                 : pack_for_outputs(from, m.outputs, m.inputs, panel, to);
      });
    });
    for (int64_t layer = 0; layer < layers && g.mixes(); ++layer) {
      with_type(dtype, [&](auto type) {
        const auto* gate_up = static_cast<const decltype(type)*>(weights[layer].qkv);
        const auto* down = static_cast<const decltype(type)*>(weights[layer].o);
        const auto pack_into = [&](auto mixer) {
          mixer.place(const_cast<Element*>(Packed(g, packed, layer).mixing));
          mixer.pack(gate_up, down, team);
        };
        backward ? pack_into(MixerGradient(g.mixer)) : pack_into(g.mixer);
      });
    }
    for (int64_t layer = 0; layer < layers && g.convolves(); ++layer) {
      team.for_each(g.inner.panels(), [&](int64_t panel) {
        with_type(dtype, [&](auto type) {
          using T = decltype(type);
          const hrm_weights& w = weights[layer];
          Convolution::pack(static_cast<const T*>(w.conv), static_cast<const T*>(w.conv_bias), g.inner, panel,
                            const_cast<float*>(Packed(g, packed, layer).taps));
        });
      });
    }
  });
}

void run_updates(hrm_shape shape, const hrm_update* updates, int64_t count, const void* const* states,
                 int64_t state_count, void* const* outputs, int dtype, const float* cos, const float* sin,
                 const hrm_movement* movement, int threads) {
  const Geometry g(shape);
  const bool pre_norm = count > 0 && updates[0].scales;
  ThreadMemory memory(g, threads, false, pre_norm);
  const int64_t state_floats = g.floats(g.dim);
  const bool damped = count > 0 && updates[0].damping;
  const int64_t squares_floats = movement ? Geometry::whole(state_count * g.rows * 2) : 0;
  Scratch scratch{workspace(squares_floats + (state_count + damped) * state_floats + g.floats(g.qkv) +
                            g.floats(g.attended) + g.activated_floats() + threads * memory.each)};
  float* squares = scratch.floats(squares_floats);
  Panels state[3];
  for (int64_t i = 0; i < state_count; ++i) state[i] = scratch.panels(g.dim.panels(), g.stride);
  const Panels qkv = scratch.panels(g.qkv.panels(), g.stride);
  const Panels attended = scratch.panels(g.attended.panels(), g.stride);
  const Panels activated = scratch.panels(g.convolves() ? g.inner.panels() : 0, g.stride);
  const Panels plain = damped ? scratch.panels(g.dim.panels(), g.stride) : Panels{nullptr, 0};
  memory.base = scratch.next;
  int64_t layers = 0;
  for (int64_t i = 0; i < count; ++i) layers += updates[i].layers;

  parallel(threads, [&](Team::Member& team) {
    const TileScope tiles;
    with_type(dtype, [&](auto type) {
      for (int64_t i = 0; i < state_count; ++i) {
        unpack(static_cast<const decltype(type)*>(states[i]), g.dim, state[i], g.rows, team);
      }
    });
    run_layers(g, layers, memory, team, cos, sin, [&](int64_t i) {
      const hrm_update* update = updates;
      while (i >= update->layers) i -= (update++)->layers;
      const Panels none{nullptr, 0}, z = state[update->state], x = update->damping ? plain : z;
      const bool starts = i == 0, ends = i == update->layers - 1;
      Layer layer{Packed(g, update->packed, i),
                  x,
                  qkv,
                  attended,
                  x,
                  none,
                  x,
                  nullptr,
                  nullptr,
                  nullptr,
                  activated,
                  starts && update->injection >= 0 ? state[update->injection] : none,
                  starts && update->injection2 >= 0 ? state[update->injection2] : none};
      if (update->damping) {
        if (starts) layer.start = z;
        if (ends) layer.damped = {update->damping, z, update->number};
      }
      if (update->scales) layer.scales = update->scales + i * 3 * g.dim.panels() * kWidth;
      return layer;
    });
    with_type(dtype, [&](auto type) {
      using T = decltype(type);
      int64_t written = 0;
      for (int64_t i = 0; i < state_count; ++i) {
        if (!outputs[i]) continue;
        T* to = static_cast<T*>(outputs[i]);
        if (!movement) {
          pack(state[i], g.dim, to, g.rows, team);
          continue;
        }
        float* sums = squares + 2 * g.rows * written++;
        for_rows_of_a_matrix(g.rows, team, [&](int64_t row) {
          const float weight = movement->weights ? movement->weights[row / g.shape.positions] : 1.0f;
          pack_moved(state[i], row, g.dim, static_cast<const T*>(states[i]), to, weight, sums + 2 * row);
        });
      }
      if (movement) {
        team.for_each(g.shape.batch, [&](int64_t batch) {
          add_squares(squares, written, g.shape.batch, batch, g.shape.positions, movement->change + 2 * batch);
        });
      }
    });
  });
}

// The values of a block that the forward saves for the backward: per row 2 D + 4 H d + 2 I + 2 + H floats, or 2 D + 2 I
// + 1 (and D for each row of the batch) where it mixes positions, or only D with recomputation.
struct Saved {
  Panels in, qkv, attended, middle, gate_up, out;
  float *rstd1, *rstd2, *lse;

  static int64_t size(const Geometry& g) {
    return 2 * g.floats(g.dim) + g.floats(g.qkv) + g.floats(g.attended) + g.floats(g.gate_up) + g.rstd1_floats() +
           g.rstd2_floats() + g.lse_floats();
  }
  // The part of this block; its output is the input of the next one.
  Saved(const Geometry& g, float* own, Panels output) : out(output) {
    Scratch scratch{own};
    in = scratch.panels(g.dim.panels(), g.stride);
    qkv = scratch.panels(g.qkv.panels(), g.stride);
    attended = scratch.panels(g.attended.panels(), g.stride);
    middle = scratch.panels(g.dim.panels(), g.stride);
    gate_up = scratch.panels(g.gate_up.panels(), g.stride);
    rstd1 = scratch.floats(g.rstd1_floats());
    rstd2 = scratch.floats(g.rstd2_floats());
    lse = scratch.floats(g.lse_floats());
  }
};

// The parts of `saved`: without recomputation for each cycle all values of its blocks and its output, else only the
// inputs of all blocks.
int64_t saved_cycle(const Geometry& g, int64_t layers) { return layers * Saved::size(g) + g.floats(g.dim); }
int64_t saved_size(hrm_shape shape, int64_t layers, int64_t cycles, int recompute) {
  const Geometry g(shape);
  return cycles * (recompute ? layers * g.floats(g.dim) : saved_cycle(g, layers));
}

// Block `i` of all cycles.
Saved saved_layer(const Geometry& g, float* saved, int64_t layers, int64_t i) {
  float* own = saved + i / layers * saved_cycle(g, layers) + i % layers * Saved::size(g);
  return Saved(g, own, Scratch{own + Saved::size(g)}.panels(0, g.stride));
}

Layer with_gradients(const Packed& weights, const Saved& s, Panels activated) {
  return {weights, s.in,    s.qkv, s.attended, s.middle,     s.gate_up,   s.out,
          s.rstd1, s.rstd2, s.lse, activated,  {nullptr, 0}, {nullptr, 0}};
}

void blocks_forward(hrm_shape shape, const float* packed, int64_t layers, int64_t cycles, const void* x,
                    const void* injection, void* out, int dtype, const float* cos, const float* sin, int recompute,
                    float* saved, const hrm_damping* damping, int threads) {
  const Geometry g(shape);
  ThreadMemory memory(g, threads, false);
  const int64_t one = g.floats(g.dim), count = layers * cycles;
  Scratch scratch{workspace((damping ? 3 : 2) * one + g.floats(g.qkv) + g.floats(g.attended) + g.activated_floats() +
                            threads * memory.each)};
  const Panels state = scratch.panels(g.dim.panels(), g.stride), add = scratch.panels(g.dim.panels(), g.stride);
  const Panels qkv = scratch.panels(g.qkv.panels(), g.stride);
  const Panels attended = scratch.panels(g.attended.panels(), g.stride);
  const Panels activated = scratch.panels(g.convolves() ? g.inner.panels() : 0, g.stride);
  const Panels blended = damping ? scratch.panels(g.dim.panels(), g.stride) : Panels{nullptr, 0};
  memory.base = scratch.next;
  const Panels none{nullptr, 0};
  const auto input = [&](int64_t i) { return Scratch{saved + i * one}.panels(0, g.stride); };  // with recomputation
  const auto kept = [&](int64_t i) { return saved_layer(g, saved, layers, i); };               // without
  const Panels first = recompute ? input(0) : kept(0).in;

  parallel(threads, [&](Team::Member& team) {
    const TileScope tiles;
    with_type(dtype, [&](auto type) {
      unpack(static_cast<const decltype(type)*>(x), g.dim, first, g.rows, team);
      if (injection) unpack(static_cast<const decltype(type)*>(injection), g.dim, add, g.rows, team);
      if (damping) unpack(static_cast<const decltype(type)*>(x), g.dim, blended, g.rows, team);
    });
    run_layers(g, count, memory, team, cos, sin, [&](int64_t i) {
      const Packed weights(g, packed, i % layers);
      Layer layer =
          recompute ? Layer{weights, input(i), qkv,     attended,  state, none, i + 1 < count ? input(i + 1) : state,
                            nullptr, nullptr,  nullptr, activated, none,  none}
                    : with_gradients(weights, kept(i), activated);
      if (i % layers == 0) {
        if (injection) layer.injection = add;
        if (i && !recompute) layer.start = kept(i - 1).out;
      }
      if (i == count - 1 && damping) layer.damped = {damping, blended, 0};
      return layer;
    });
    const Panels last = damping ? blended : recompute ? state : kept(count - 1).out;
    with_type(dtype, [&](auto type) { pack(last, g.dim, static_cast<decltype(type)*>(out), g.rows, team); });
  });
}

// Computes weight gradients dy.T @ x in tasks of kGroupOut x kGroupIn panels, whose sums stay in the cache.
constexpr int64_t kGroupOut = 64 / kWidth > 1 ? 64 / kWidth : 1, kGroupIn = 128 / kWidth;

struct WeightGradient {
  TransposedProduct factors;
  Columns outputs, inputs;
  void* gradient;
  bool fresh;  // the sums replace what `gradient` holds; else they are added

  WeightGradient(Panels dy, Panels x, Columns outputs_, Columns inputs_, int64_t rows, void* gradient_, bool fresh_)
      : factors{dy, x, outputs_.panels(), inputs_.panels(), rows},
        outputs(outputs_),
        inputs(inputs_),
        gradient(gradient_),
        fresh(fresh_) {}

  int64_t pack_tasks() const { return gradient ? factors.pack_tasks() : 0; }
  int64_t groups_in() const { return (inputs.panels() + kGroupIn - 1) / kGroupIn; }
  int64_t tasks() const { return gradient ? (outputs.panels() + kGroupOut - 1) / kGroupOut * groups_in() : 0; }

  template <class T>
  void run(int64_t task, float* memory) const {
    const int64_t out = task / groups_in() * kGroupOut, in = task % groups_in() * kGroupIn;
    const int64_t outs = outputs.panels() - out < kGroupOut ? outputs.panels() - out : kGroupOut;
    const int64_t ins = inputs.panels() - in < kGroupIn ? inputs.panels() - in : kGroupIn;
    const FloatPanels sums{memory, kGroupOut * kWidth};
    for (int64_t first = 0; first < factors.rows; first += kGradientRows) {
      const int64_t count = factors.rows - first < kGradientRows ? factors.rows - first : kGradientRows;
      factors.add(out, outs, in, ins, first, count, sums);
    }
    T* to = static_cast<T*>(gradient);
    for (int64_t row = 0; row < outs * kWidth; ++row) {
      const int64_t output = outputs.column(out + row / kWidth, row % kWidth);
      if (output < 0) continue;
      for (int64_t p = 0; p < ins; ++p) {
        const float* lanes = sums.at(p, row);
        T* run = to + output * inputs.real();
        if (const int64_t first = inputs.whole(in + p); first >= 0) {
          for (int64_t half = 0; half < kWidth; half += kLanes) {
            T* at = run + first + half;
            store(at, fresh ? load(lanes + half) : load(at) + load(lanes + half));
          }
          continue;
        }
        for (int64_t lane = 0; lane < kWidth; ++lane) {
          const int64_t input = inputs.column(in + p, lane);
          if (input >= 0) assign(run[input], fresh ? lanes[lane] : to_float(run[input]) + lanes[lane]);
        }
      }
    }
  }
};

// Computes from the gradient `dy` of a block's mixing and norm the gradient dx of the block's input, and those of the
// mixing weights. dy becomes that of the sum before the norm.
inline void mix_backward(const Geometry& g, const Packed& forward, const Packed& backward, const Saved& saved,
                         Panels dy, Panels dx, const MixingSums& sums, const hrm_weight_gradients& dweights, int dtype,
                         float* memory, Team::Member& team) {
  Mixer mixer = g.mixer;
  MixerGradient gradient(mixer);
  mixer.place(const_cast<Element*>(forward.mixing));
  gradient.place(const_cast<Element*>(backward.mixing));
  const bool wanted = dweights.qkv || dweights.o;
  for (int64_t start = 0; start < g.pieces(); start += sums.group) {
    const int64_t count = g.pieces() - start < sums.group ? g.pieces() - start : sums.group;
    team.for_each(count, [&](int64_t i) {
      const int64_t piece = start + i;
      const int64_t panel = piece % g.dim.panels(), first = piece / g.dim.panels() * g.shape.positions;
      const Element* in = saved.in.at(panel, first);
      Element *du = dy.at(panel, first), *to = dx.at(panel, first);
      gradient.run(mixer, in, saved.middle.at(panel, first), saved.rstd1 + piece * kWidth, du, sums.values(i), false,
                   memory, [&](int64_t s, const float* lanes) HRM_ALWAYS {
                     store(to + s * kWidth, load(lanes));
                     store(to + s * kWidth + kLanes, load(lanes + kLanes));
                   });
      if (wanted) sums.keep(i, in, du);
    });
    if (wanted) team.for_each(sums.tasks(), [&](int64_t task) { sums.add(task, count, start == 0, memory); });
  }
  if (!wanted) return;
  team.for_each(mixer.inner, [&](int64_t row) {
    with_type(dtype, [&](auto type) {
      using T = decltype(type);
      sums.write(row, static_cast<T*>(dweights.qkv), static_cast<T*>(dweights.o));
    });
  });
}

// The gradients that a block's backward passes on from step to step.
struct Gradients {
  Panels dy, du2, du1, dattended, dqkv, dgate_up;
  Panels inner;      // the values that `down` reads
  Panels activated;  // for a ConvSwiGLU: y, and the gradient dc
  Panels dc;

  static int64_t floats(const Geometry& g) {
    return 3 * g.floats(g.dim) + g.floats(g.attended) + g.floats(g.qkv) + g.floats(g.gate_up) + g.floats(g.inner) +
           2 * g.activated_floats();
  }
  Gradients(const Geometry& g, float* memory) {
    Scratch scratch{memory};
    for (Panels* state : {&dy, &du2, &du1}) *state = scratch.panels(g.dim.panels(), g.stride);
    dattended = scratch.panels(g.attended.panels(), g.stride);
    dqkv = scratch.panels(g.qkv.panels(), g.stride);
    dgate_up = scratch.panels(g.gate_up.panels(), g.stride);
    inner = scratch.panels(g.inner.panels(), g.stride);
    for (Panels* one : {&activated, &dc}) *one = scratch.panels(g.convolves() ? g.inner.panels() : 0, g.stride);
  }
};

// Computes for rows [first, first + rows) the gradient du2 of the sum before the second norm, and of the SwiGLU: that
// of gate_up, or with a ConvSwiGLU dc. And again the values that `down` reads.
inline void backward_of_output(const Geometry& g, const Packed& forward, const Packed& backward, const Saved& s,
                               const Gradients& d, int64_t first, int64_t rows, float* sums) {
  const int64_t dim = g.dim.panels();
  const Panels d2 = d.du2.from(0, first), gate_up = s.gate_up.from(0, first), dgu = d.dgate_up.from(0, first);
  const Panels h = d.inner.from(0, first);
  copy_rows(d.dy.from(0, first), dim, rows, d2, rows);
  for (int64_t row = 0; row < rows; ++row) {
    norm_row_backward(d2, s.out.from(0, first), dim, row, g.shape.dim, s.rstd2[first + row]);
  }
  if (g.convolves()) {
    product(d2, dim, backward.down, g.inner.panels(), rows, sums, keep(d.dc.from(0, first)));
    g.convolution(forward.taps).backward(s.gate_up, first, rows, d.activated, d.inner, d.dc);
    return;
  }
  product(d2, dim, backward.down, g.inner.panels(), rows, sums,
          [&](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
            for_rows(tile, count, [&](int j, Vec* columns) HRM_ALWAYS {
              for (int64_t half = 0; half < 2; ++half) {  // kLanes columns of inner: one panel of gate_up
                const Element* from = gate_up.at(2 * panel + half, row + j);
                Element* to = dgu.at(2 * panel + half, row + j);
                const Vec gate = load(from), up = load(from + kLanes), dh = columns[half];
                const Vec s_gate = sigmoid(gate), silu = gate * s_gate;
                store(to, dh * up * (s_gate + silu * (1.0f - s_gate)));
                store(to + kLanes, dh * silu);
                store(h.at(panel, row + j) + half * kLanes, silu * up);
              }
            });
          });
}

// Computes for these rows the gradient du1 of the sum before the first norm, and that of the attention.
inline void backward_of_hidden(const Geometry& g, const Packed& forward, const Packed& backward, const Saved& s,
                               const Gradients& d, int64_t first, int64_t rows, float* sums) {
  const int64_t dim = g.dim.panels();
  const Panels d1 = d.du1.from(0, first);
  if (g.convolves()) g.convolution(forward.taps).gate_up_backward(s.gate_up, d.dc, first, rows, d.dgate_up);
  product_plus(d.dgate_up.from(0, first), g.gate_up.panels(), backward.gate_up, dim, rows, sums, d.du2.from(0, first),
               d1);
  if (g.mixes()) return;
  for (int64_t row = 0; row < rows; ++row) {
    norm_row_backward(d1, s.middle.from(0, first), dim, row, g.shape.dim, s.rstd1[first + row]);
  }
  product(d1, dim, backward.o, g.attended.panels(), rows, sums, keep(d.dattended.from(0, first)));
}

void blocks_backward(hrm_shape shape, const float* packed, const float* packed_backward, int64_t layers, int64_t cycles,
                     const void* dout, void* dx, void* dinjection, const hrm_weight_gradients* dweights, int dtype,
                     const float* cos, const float* sin, int recompute, const float* saved, int threads) {
  const Geometry g(shape);
  ThreadMemory memory(g, threads, true);
  const int64_t group = kGroupOut * kGroupIn * kWidth * kWidth;
  if (memory.each < group) memory.each = group;
  const int64_t dim = g.dim.panels();
  const std::pair<Columns, Columns> sizes[4] = {
      {g.qkv, g.dim}, {g.dim, g.attended}, {g.gate_up, g.dim}, {g.dim, g.inner}};
  int64_t gradient_elements = 0;
  for (const auto& [outputs, inputs] : sizes) {
    gradient_elements += transposed_elements(outputs.panels(), inputs.panels(), g.rows);
  }
  Scratch scratch{workspace(Gradients::floats(g) + (g.mixes() ? MixingSums(g.mixer, g.pieces()).floats() : 0) +
                            (recompute ? Saved::size(g) + g.floats(g.dim) : 0) + (dinjection ? g.floats(g.dim) : 0) +
                            floats_for(gradient_elements) + threads * memory.each)};
  const Gradients d(g, scratch.floats(Gradients::floats(g)));
  MixingSums mixed(g.mixer, g.pieces());
  if (g.mixes()) mixed.place(scratch.floats(mixed.floats()));
  float* again = recompute ? scratch.floats(Saved::size(g) + g.floats(g.dim)) : nullptr;
  const Panels injected = scratch.panels(dinjection ? dim : 0, g.stride);  // the gradient of the injection
  float* packed_factors = scratch.floats(floats_for(gradient_elements));
  memory.base = scratch.next;

  parallel(threads, [&](Team::Member& team) {
    const TileScope tiles;
    float* own = memory.of(team.rank());
    float* sums = own;
    const int64_t blocks = memory.blocks;
    const auto rows_of = [&](auto compute) {  // compute(first, rows) for each task's rows
      team.for_each(blocks, [&](int64_t task) {
        const int64_t first = g.block_start(task, blocks);
        compute(first, g.block_start(task + 1, blocks) - first);
      });
    };
    with_type(dtype, [&](auto type) { unpack(static_cast<const decltype(type)*>(dout), g.dim, d.dy, g.rows, team); });
    for (int64_t i = layers * cycles - 1; i >= 0; --i) {
      const int64_t layer = i % layers;
      const bool fresh = i / layers == cycles - 1;  // the gradients of weights: later cycles come first
      const Packed forward(g, packed, layer), weights(g, packed_backward, layer);
      Saved s = again ? saved_layer(g, again, 1, 0) : saved_layer(g, const_cast<float*>(saved), layers, i);
      if (recompute) {
        s.in = Scratch{const_cast<float*>(saved) + i * g.floats(g.dim)}.panels(0, g.stride);
        run_layers(g, 1, memory, team, cos, sin, [&](int64_t) { return with_gradients(forward, s, d.activated); });
      }
      rows_of([&](int64_t first, int64_t rows) {
        backward_of_output(g, forward, weights, s, d, first, rows, sums);
        if (!g.convolves()) backward_of_hidden(g, forward, weights, s, d, first, rows, sums);
      });
      if (g.convolves()) {
        rows_of([&](int64_t first, int64_t rows) { backward_of_hidden(g, forward, weights, s, d, first, rows, sums); });
      }
      const hrm_weight_gradients& to = dweights[layer];
      if (g.mixes()) {
        mix_backward(g, forward, weights, s, d.du1, d.dy, mixed, to, dtype, own, team);
      } else {
        const Heads heads = g.heads(s.qkv, cos, sin);
        team.for_each(g.shape.batch * g.shape.heads, [&](int64_t task) {
          attend_backward(heads, task / g.shape.heads, task % g.shape.heads, d.dattended, s.attended, s.lse, d.dqkv,
                          own);
        });
      }
      WeightGradient gradients[4] = {{d.dqkv, s.in, g.qkv, g.dim, g.rows, g.mixes() ? nullptr : to.qkv, fresh},
                                     {d.du1, s.attended, g.dim, g.attended, g.rows, g.mixes() ? nullptr : to.o, fresh},
                                     {d.dgate_up, s.middle, g.gate_up, g.dim, g.rows, to.gate_up, fresh},
                                     {d.du2, d.inner, g.dim, g.inner, g.rows, to.down, fresh}};
      Scratch room{packed_factors};
      int64_t packs = 0;
      for (WeightGradient& gradient : gradients) {
        gradient.factors.place(room);
        packs += gradient.pack_tasks();
      }
      if (packs) {
        team.for_each(packs, [&](int64_t task) {
          for (const WeightGradient& gradient : gradients) {
            if (task < gradient.pack_tasks()) return gradient.factors.pack(task);
            task -= gradient.pack_tasks();
          }
        });
      }
      const int64_t inputs = g.mixes() ? 0 : blocks;  // tasks that compute the gradient of the block's input
      const int64_t channels = to.conv || to.conv_bias ? g.inner.panels() : 0;  // tasks for those of a convolution
      int64_t tasks = inputs + channels;
      for (const WeightGradient& gradient : gradients) tasks += gradient.tasks();
      team.for_each(tasks, [&](int64_t task) {
        if (task < inputs) {
          const int64_t first = g.block_start(task, blocks), rows = g.block_start(task + 1, blocks) - first;
          product_plus(d.dqkv.from(0, first), g.qkv.panels(), weights.qkv, dim, rows, sums, d.du1.from(0, first),
                       d.dy.from(0, first));
          return;
        }
        task -= inputs;
        for (const WeightGradient& gradient : gradients) {
          if (task < gradient.tasks()) {
            with_type(dtype, [&](auto type) { gradient.run<decltype(type)>(task, own); });
            return;
          }
          task -= gradient.tasks();
        }
        with_type(dtype, [&](auto type) {
          using T = decltype(type);
          g.convolution(forward.taps)
              .add_gradients(d.activated, d.dc, g.rows, task, fresh, static_cast<T*>(to.conv),
                             static_cast<T*>(to.conv_bias));
        });
      });
      if (dinjection && layer == 0) {
        team.for_each(dim, [&](int64_t panel) {
          for (int64_t at = 0; at < g.rows * kWidth; at += kLanes) {
            const Vec gradient = load(d.dy.at(panel, 0) + at);
            Element* sum = injected.at(panel, 0) + at;
            store(sum, fresh ? gradient : load(sum) + gradient);
          }
        });
      }
    }
    with_type(dtype, [&](auto type) {
      using T = decltype(type);
      pack(d.dy, g.dim, static_cast<T*>(dx), g.rows, team);
      if (dinjection) pack(injected, g.dim, static_cast<T*>(dinjection), g.rows, team);
    });
  });
}

}  // namespace

void noise(int64_t batch, int64_t positions, int64_t dim, const int64_t* seeds, const int64_t* steps, uint32_t stream,
           float* out, int threads) {
  for_row_blocks(threads, batch * positions, dim, 4096, [&](int64_t row) {
    float numbers[kChunk];
    for (int64_t first = 0; first < dim; first += kChunk) {
      normal_numbers(static_cast<uint64_t>(seeds[row / positions]), static_cast<uint32_t>(steps[row / positions]),
                     static_cast<uint32_t>(row % positions), stream, first / kChunk, numbers);
      const int64_t count = dim - first < kChunk ? dim - first : kChunk;
      std::memcpy(out + row * dim + first, numbers, static_cast<size_t>(count) * sizeof(float));
    }
  });
}

void add_blocks(hrm_cpu_kernels& table) {
  table.noise = noise;
  table.packed_size = packed_size;
  table.pack_blocks = pack_blocks;
  table.run_updates = run_updates;
  table.saved_size = saved_size;
  table.blocks_forward = blocks_forward;
  table.blocks_backward = blocks_backward;
}

}  // namespace hrm::HRM_ISA
