// out = x @ weights.T + bias. A row's result depends neither on its position nor on the number of rows, nor on whether
// the weights were packed before: a task of few rows packs each panel of outputs in its own cache.
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/tables.h"

namespace hrm::HRM_ISA {
namespace {

constexpr int64_t kRowBlock = kTileRows > 16 ? 192 : 48 / kTileRows * kTileRows;  // these rows of x stay in an L2 cache
constexpr int kDepth = 64 / kWidth;  // panels of the inner dimension per partial sum; keeps errors as small as MKL's
constexpr int64_t kPanelGroup = 16;  // panels of outputs per task, for few rows

struct Matrix {
  Columns outputs, inputs;
  Matrix(int64_t outputs_, int64_t inputs_) : outputs{1, outputs_}, inputs{1, inputs_} {}
  int64_t panel_elements() const { return inputs.panels() * kWidth * kWidth; }
};

int64_t packed_size(int64_t outputs, int64_t inputs) {
  const Matrix m(outputs, inputs);
  return floats_for(m.outputs.panels() * m.panel_elements());
}

void pack_linear(int64_t outputs, int64_t inputs, const void* weights, int dtype, float* packed, int threads) {
  const Matrix m(outputs, inputs);
  const int64_t panels = m.outputs.panels();
  Element* to = reinterpret_cast<Element*>(packed);
  with_type(dtype, [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(weights);
    parallel(threads < panels ? threads : static_cast<int>(panels), [&](Team::Member& team) {
      team.for_each(panels, [&](int64_t panel) {
        pack_for_outputs(from, m.outputs, m.inputs, panel, to + panel * m.panel_elements());
      });
    });
  });
}

// The weights as pack_linear has packed them, or, where `packed` is nullptr, as they are: [outputs, inputs].
struct Weights {
  const Element* packed;
  const void* plain;
};

void multiply(int64_t rows, const Matrix& m, const void* x, const Weights& weights, const void* bias, void* out,
              int dtype, int threads) {
  const int64_t row_block = weights.packed ? kRowBlock : 2 * kRowBlock;  // what is packed serves more rows
  const int64_t panels = m.outputs.panels(), outputs = m.outputs.real(), blocks = (rows + row_block - 1) / row_block;
  const int64_t group = blocks >= 4 * threads || panels < kPanelGroup ? panels : kPanelGroup;
  const int64_t groups = (panels + group - 1) / group, tasks = blocks * groups;
  const int64_t most = rows < row_block ? rows : row_block;
  const int64_t stride = (most + kTileRows) | 1;  // odd, so that the panels of a row use different cache sets
  const int64_t panel_floats = weights.packed ? 0 : floats_for(m.panel_elements());
  const int64_t each =
      (floats_for(m.inputs.panels() * stride * kWidth) + (most + kTileRows) * kWidth + panel_floats + kWidth - 1) /
      kWidth * kWidth;
  Scratch scratch{workspace(panels * kWidth + threads * each)};
  float* added = scratch.floats(panels * kWidth);

  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t i = 0; i < panels * kWidth; ++i) {
      added[i] = bias && i < outputs ? to_float(static_cast<const T*>(bias)[i]) : 0.0f;
    }
    parallel(threads < tasks ? threads : static_cast<int>(tasks), [&](Team::Member& team) {
      const TileScope tiles;
      Scratch own{scratch.next + team.rank() * each};
      Element* own_panel = reinterpret_cast<Element*>(own.floats(panel_floats));
      const Panels left = own.panels(m.inputs.panels(), stride);
      float* sums = own.next;
      team.for_each(tasks, [&](int64_t task) {
        const int64_t first = task / groups * row_block, from = task % groups * group;
        const int64_t count = rows - first < row_block ? rows - first : row_block;
        const int64_t end = panels - from < group ? panels : from + group;
        for (int64_t row = 0; row < count; ++row) {
          unpack_row(static_cast<const T*>(x), first + row, m.inputs, left, row);
        }
        const int64_t step = weights.packed ? end - from : 1;  // panels that are packed
        for (int64_t start = from; start < end; start += step) {
          const Element* right = weights.packed + start * m.panel_elements();
          if (!weights.packed) {
            pack_for_outputs(static_cast<const T*>(weights.plain), m.outputs, m.inputs, start, own_panel);
            right = own_panel;
          }
          product<kDepth>(left, m.inputs.panels(), right, step, count, sums,
                          [&](Tile& tile, int64_t row, int64_t real, int64_t panel) HRM_ALWAYS {
                            const int64_t column = (start + panel) * kWidth;
                            const Vec low = load(added + column), high = load(added + column + kLanes);
                            for_rows(tile, real, [&](int i, Vec* columns) HRM_ALWAYS {
                              T* to = static_cast<T*>(out) + (first + row + i) * outputs + column;
                              if (column + kWidth <= outputs) {
                                store(to, columns[0] + low);
                                store(to + kLanes, columns[1] + high);
                                return;
                              }
                              float lanes[kWidth];
                              store(lanes, columns[0] + low);
                              store(lanes + kLanes, columns[1] + high);
                              for (int64_t lane = 0; column + lane < outputs; ++lane) assign(to[lane], lanes[lane]);
                            });
                          });
        }
      });
    });
  });
}

void linear(int64_t rows, int64_t outputs, int64_t inputs, const void* x, const float* packed, const void* bias,
            void* out, int dtype, int threads) {
  const Weights weights{reinterpret_cast<const Element*>(packed), nullptr};
  multiply(rows, Matrix(outputs, inputs), x, weights, bias, out, dtype, threads);
}

void linear_unpacked(int64_t rows, int64_t outputs, int64_t inputs, const void* x, const void* weights,
                     const void* bias, void* out, int dtype, int threads) {
  multiply(rows, Matrix(outputs, inputs), x, {nullptr, weights}, bias, out, dtype, threads);
}

}  // namespace

void add_linear(hrm_cpu_kernels& table) {
  table.linear_packed_size = packed_size;
  table.pack_linear = pack_linear;
  table.linear = linear;
  table.linear_unpacked = linear_unpacked;
}

}  // namespace hrm::HRM_ISA
