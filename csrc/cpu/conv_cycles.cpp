// Updates of a module of blocks with attention and ConvSwiGLU, without gradients: all of them in one pass.
//
// Each block takes three phases of tasks: groups of rows through the output projection, norm and SwiGLU; groups of rows
// through the convolution, down, norm and the next block's qkv; and attention. The convolution reads the row before a
// group, which another task computes, so y = silu(gate) * up goes through memory that all threads share.
#include <algorithm>

#include "cpu/attention.h"
#include "cpu/cache.h"
#include "cpu/kernels.h"
#include "cpu/norm.h"
#include "cpu/rows.h"
#include "cpu/tables.h"

namespace hrm::HRM_ISA {
namespace {

struct Geometry {
  hrm_shape shape;
  int64_t rows, stride;  // batch * positions; of panels: odd, so that the panels of a row use different cache sets
  Columns dim, qkv, attended, gate_up, inner;

  explicit Geometry(const hrm_shape& s)
      : shape(s),
        rows(s.batch * s.positions),
        stride((rows + kTileRows) | 1),
        dim{1, s.dim},
        qkv{3 * s.heads, s.head_dim},
        attended{s.heads, s.head_dim},
        gate_up{1, s.inner, true},
        inner{1, s.inner} {}

  // Sizes in floats.
  int64_t matrix(Columns outputs, Columns inputs) const {
    return floats_for(outputs.panels() * inputs.panels() * kWidth * kWidth);
  }
  int64_t taps() const { return 3 * inner.panels() * kWidth; }
  int64_t packed() const {
    return taps() + matrix(qkv, dim) + matrix(dim, attended) + matrix(gate_up, dim) + matrix(dim, inner);
  }
  int64_t floats(Columns columns) const { return floats_for(columns.panels() * stride * kWidth); }

  // Rows of a task: as many tasks as threads, or several times as many, so that the state and the inner rows of a task
  // fill at most three quarters of an L2 cache. No result depends on it.
  int64_t task_rows(int threads) const {
    const int64_t row = static_cast<int64_t>(sizeof(Element)) * kWidth * (dim.panels() + inner.panels());
    const int64_t most = threads * std::max<int64_t>(l2_cache() * 3 / 4 / row, kTileRows);
    const int64_t tasks = (rows + most - 1) / most * threads;
    return ((rows + tasks - 1) / tasks + kRowGrain - 1) / kRowGrain * kRowGrain;
  }
};

// A packed block. taps: for each panel of the inner size the weights of the position before, those of the position
// itself, and the bias, in float32.
struct Packed {
  float *taps, *qkv, *o, *gate_up, *down;
  Packed(const Geometry& g, float* base, int64_t layer) {
    taps = base + layer * g.packed();
    qkv = taps + g.taps();
    o = qkv + g.matrix(g.qkv, g.dim);
    gate_up = o + g.matrix(g.dim, g.attended);
    down = gate_up + g.matrix(g.gate_up, g.dim);
  }
};

HRM_INLINE const Element* elements(const float* packed) { return reinterpret_cast<const Element*>(packed); }

// silu(before * y[t - 1] + now * y[t] + bias) of rows [first, first + rows), where y[-1] is 0 for each row of the
// batch.
inline void convolve(const Geometry& g, const float* taps, Panels y, int64_t first, int64_t rows, Panels out) {
  for (int64_t panel = 0; panel < g.inner.panels(); ++panel, taps += 3 * kWidth) {
    for (int half = 0; half < kWidth; half += kLanes) {
      const Vec before = load(taps + half), now = load(taps + kWidth + half), bias = load(taps + 2 * kWidth + half);
      int64_t position = first % g.shape.positions;
      Vec last = position ? load(y.at(panel, first - 1) + half) : Vec{};
      for (int64_t row = 0; row < rows; ++row) {
        const Vec here = load(y.at(panel, first + row) + half), c = before * last + now * here + bias;
        store(out.at(panel, row) + half, c * sigmoid(c));
        const bool ends = ++position == g.shape.positions;
        last = ends ? Vec{} : here;
        if (ends) position = 0;
      }
    }
  }
}

int64_t packed_size(hrm_shape shape) { return Geometry(shape).packed(); }

void pack(hrm_shape shape, const hrm_conv_weights* weights, int64_t layers, int dtype, float* packed, int threads) {
  const Geometry g(shape);
  struct Matrix {
    const void* weights;
    Columns outputs, inputs;
    float* packed;
  };
  const auto matrices = [&](int64_t layer, auto each) {
    const hrm_conv_weights& w = weights[layer];
    const Packed to(g, packed, layer);
    for (const Matrix& m : {Matrix{w.qkv, g.qkv, g.dim, to.qkv}, Matrix{w.o, g.dim, g.attended, to.o},
                            Matrix{w.gate_up, g.gate_up, g.dim, to.gate_up}, Matrix{w.down, g.dim, g.inner, to.down}}) {
      each(m);
    }
  };
  parallel(threads, [&](Team::Member& team) {
    for (int64_t layer = 0; layer < layers; ++layer) {
      matrices(layer, [&](const Matrix& m) {
        team.for_each(m.outputs.panels(), [&](int64_t panel) {
          Element* to = reinterpret_cast<Element*>(m.packed) + panel * m.inputs.panels() * kWidth * kWidth;
          with_type(dtype, [&](auto type) {
            pack_for_outputs(static_cast<const decltype(type)*>(m.weights), m.outputs, m.inputs, panel, to);
          });
        });
      });
      team.for_each(g.inner.panels(), [&](int64_t panel) {
        with_type(dtype, [&](auto type) {
          using T = decltype(type);
          float* to = Packed(g, packed, layer).taps + panel * 3 * kWidth;
          for (int64_t lane = 0; lane < kWidth; ++lane) {
            const int64_t i = g.inner.column(panel, lane);
            const auto* taps = static_cast<const T*>(weights[layer].conv);
            to[lane] = i < 0 ? 0.0f : to_float(taps[2 * i]);
            to[kWidth + lane] = i < 0 ? 0.0f : to_float(taps[2 * i + 1]);
            to[2 * kWidth + lane] = i < 0 ? 0.0f : to_float(static_cast<const T*>(weights[layer].conv_bias)[i]);
          }
        });
      });
    }
  });
}

void run(hrm_shape shape, const float* packed, int64_t layers, const void* x, const void* injection, void* out,
         int64_t cycles, int dtype, const float* cos, const float* sin, int threads) {
  const Geometry g(shape);
  const int64_t each_rows = g.task_rows(threads), tasks = (g.rows + each_rows - 1) / each_rows;
  const Heads sizes{{nullptr, 0}, shape.positions, shape.heads, shape.head_dim, {cos, sin, shape.head_dim}};
  const int64_t own_rows = each_rows + kTileRows;
  const int64_t hidden_floats = floats_for(g.inner.panels() * own_rows * kWidth) + own_rows * kWidth;
  const int64_t each = (std::max(hidden_floats, sizes.forward_scratch()) + 4 * kWidth) / kWidth * kWidth;
  Scratch scratch{
      workspace(2 * g.floats(g.dim) + g.floats(g.qkv) + g.floats(g.attended) + g.floats(g.inner) + threads * each)};
  const Panels state = scratch.panels(g.dim.panels(), g.stride), add = scratch.panels(g.dim.panels(), g.stride);
  const Panels qkv = scratch.panels(g.qkv.panels(), g.stride);
  const Panels attended = scratch.panels(g.attended.panels(), g.stride);
  const Panels y = scratch.panels(g.inner.panels(), g.stride);
  Heads heads = sizes;
  heads.qkv = qkv;
  const int64_t dim = g.dim.panels();
  const int64_t blocks = cycles * layers;
  const auto weights = [&](int64_t block) { return Packed(g, const_cast<float*>(packed), block % layers); };

  parallel(threads, [&](Team::Member& team) {
    const TileScope tiles;
    float* own = scratch.next + team.rank() * each;
    Scratch memory{own};
    const Panels hidden = memory.panels(g.inner.panels(), own_rows);
    float* sums = memory.next;
    const auto rows_of = [&](auto compute) {  // compute(first, rows) for each task's rows
      team.for_each(tasks, [&](int64_t task) {
        const int64_t first = task * each_rows;
        compute(first, std::min(each_rows, g.rows - first));
      });
    };
    with_type(dtype, [&](auto type) {
      using T = decltype(type);
      unpack(static_cast<const T*>(x), g.dim, state, g.rows, team);
      unpack(static_cast<const T*>(injection), g.dim, add, g.rows, team);
    });
    for (int64_t block = 0; block <= blocks; ++block) {
      rows_of([&](int64_t first, int64_t rows) {
        const Panels z = state.from(0, first);
        if (block > 0) {
          const Packed last = weights(block - 1);
          convolve(g, last.taps, y, first, rows, hidden);
          product(hidden, g.inner.panels(), elements(last.down), dim, rows, sums, keep_sum(z, z));
          for (int64_t row = 0; row < rows; ++row) norm_row(z, dim, row, shape.dim, shape.eps);
        }
        if (block == blocks) return;
        if (block % layers == 0) {
          for (int64_t panel = 0; panel < dim; ++panel) {
            Element* to = z.at(panel, 0);
            const Element* from = add.at(panel, first);
            for (int64_t i = 0; i < rows * kWidth; i += kLanes) store(to + i, load(to + i) + load(from + i));
          }
        }
        product(z, dim, elements(weights(block).qkv), g.qkv.panels(), rows, sums, keep(qkv.from(0, first)));
      });
      if (block == blocks) break;
      team.for_each(shape.batch * shape.heads, [&](int64_t task) {
        attend(heads, task / shape.heads, task % shape.heads, attended, nullptr, own);
      });
      rows_of([&](int64_t first, int64_t rows) {
        const Packed now = weights(block);
        const Panels z = state.from(0, first);
        product(attended.from(0, first), g.attended.panels(), elements(now.o), dim, rows, sums, keep_sum(z, z));
        for (int64_t row = 0; row < rows; ++row) norm_row(z, dim, row, shape.dim, shape.eps);
        const Panels to = y.from(0, first);
        product(z, dim, elements(now.gate_up), g.gate_up.panels(), rows, sums,
                [&](Tile& tile, int64_t row, int64_t count, int64_t panel) HRM_ALWAYS {
                  for_rows(tile, count, [&](int i, Vec* columns) HRM_ALWAYS {
                    store(to.at(panel / 2, row + i) + panel % 2 * kLanes,
                          columns[0] * sigmoid(columns[0]) * columns[1]);
                  });
                });
      });
    }
    with_type(dtype,
              [&](auto type) { hrm::HRM_ISA::pack(state, g.dim, static_cast<decltype(type)*>(out), g.rows, team); });
  });
}

}  // namespace

void add_conv_cycles(hrm_cpu_kernels& table) {
  table.conv_packed_size = packed_size;
  table.pack_conv_blocks = pack;
  table.conv_cycles = run;
}

}  // namespace hrm::HRM_ISA
