// add_rms_norm and swiglu as single ops, on row-major matrices.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/tables.h"

namespace hrm::HRM_ISA {
namespace {

constexpr int64_t kElements = 1 << 14;  // per task: a few microseconds

// The sum of term(i) over whole registers and tail(i) over the last elements, in partial sums, so that its error does
// not grow with the length of the row.
template <class Term, class Tail>
HRM_INLINE float sum_of(int64_t columns, Term term, Tail tail) {
  double total = 0;
  int64_t i = 0;
  while (i + kLanes <= columns) {
    Vec piece{};
    for (int count = 0; count < 32 && i + kLanes <= columns; ++count, i += kLanes) piece += term(i);
    total += sum(piece);
  }
  for (; i < columns; ++i) total += tail(i);
  return static_cast<float>(total);
}

void add_rms_norm_forward(int64_t rows, int64_t columns, const void* x, const void* residual, float eps, void* out,
                          float* rstd, int dtype, int threads) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for_row_blocks(threads, rows, columns, kElements, [&](int64_t row) {
      const T* a = static_cast<const T*>(x) + row * columns;
      const T* b = static_cast<const T*>(residual) + row * columns;
      T* to = static_cast<T*>(out) + row * columns;
      const float squares = sum_of(
          columns,
          [&](int64_t i) HRM_ALWAYS {
            const Vec u = load(a + i) + load(b + i);
            return u * u;
          },
          [&](int64_t i) {
            const float u = to_float(a[i]) + to_float(b[i]);
            return u * u;
          });
      const float scale = 1.0f / std::sqrt(squares / static_cast<float>(columns) + eps);
      rstd[row] = scale;
      int64_t i = 0;
      for (; i + kLanes <= columns; i += kLanes) store(to + i, (load(a + i) + load(b + i)) * scale);
      for (; i < columns; ++i) assign(to[i], (to_float(a[i]) + to_float(b[i])) * scale);
    });
  });
}

void add_rms_norm_backward(int64_t rows, int64_t columns, const void* dout, const void* x, const void* residual,
                           const float* rstd, void* du, int dtype, int threads) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for_row_blocks(threads, rows, columns, kElements, [&](int64_t row) {
      const T* a = static_cast<const T*>(x) + row * columns;
      const T* b = static_cast<const T*>(residual) + row * columns;
      const T* dy = static_cast<const T*>(dout) + row * columns;
      T* to = static_cast<T*>(du) + row * columns;
      const float scale = rstd[row];
      const float products = sum_of(
          columns, [&](int64_t i) HRM_ALWAYS { return load(dy + i) * (load(a + i) + load(b + i)); },
          [&](int64_t i) { return to_float(dy[i]) * (to_float(a[i]) + to_float(b[i])); });
      // with y = u * rstd: du = rstd * (dy - y * mean(dy * y))
      const float along = products / static_cast<float>(columns) * scale * scale;
      int64_t i = 0;
      for (; i + kLanes <= columns; i += kLanes) {
        store(to + i, (load(dy + i) - (load(a + i) + load(b + i)) * along) * scale);
      }
      for (; i < columns; ++i) {
        assign(to[i], (to_float(dy[i]) - (to_float(a[i]) + to_float(b[i])) * along) * scale);
      }
    });
  });
}

void swiglu_forward(int64_t rows, int64_t inner, const void* gate_up, void* out, int dtype, int threads) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for_row_blocks(threads, rows, 2 * inner, kElements, [&](int64_t row) {
      const T* gate = static_cast<const T*>(gate_up) + row * 2 * inner;
      T* to = static_cast<T*>(out) + row * inner;
      for_lanes(inner, [&](auto read, auto write) {
        const Vec g = read(gate);
        write(to, g * sigmoid(g) * read(gate + inner));
      });
    });
  });
}

void swiglu_backward(int64_t rows, int64_t inner, const void* dout, const void* gate_up, void* dgate_up, int dtype,
                     int threads) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    for_row_blocks(threads, rows, 2 * inner, kElements, [&](int64_t row) {
      const T* gate = static_cast<const T*>(gate_up) + row * 2 * inner;
      const T* dh = static_cast<const T*>(dout) + row * inner;
      T* dgate = static_cast<T*>(dgate_up) + row * 2 * inner;
      for_lanes(inner, [&](auto read, auto write) {
        const Vec g = read(gate), d = read(dh), s = sigmoid(g), silu = g * s;
        write(dgate, d * read(gate + inner) * (s + silu * (1.0f - s)));
        write(dgate + inner, d * silu);
      });
    });
  });
}

}  // namespace

void add_pointwise(hrm_cpu_kernels& table) {
  table.add_rms_norm_forward = add_rms_norm_forward;
  table.add_rms_norm_backward = add_rms_norm_backward;
  table.swiglu_forward = swiglu_forward;
  table.swiglu_backward = swiglu_backward;
}

}  // namespace hrm::HRM_ISA
