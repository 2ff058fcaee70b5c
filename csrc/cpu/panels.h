// Converts between row-major matrices (float32 or bfloat16) and panels.
#pragma once

#include "cpu/product.h"

namespace hrm::HRM_ISA {

// Hands out consecutive parts of one allocation.
struct Scratch {
  float* next;
  HRM_INLINE Panels panels(int64_t count, int64_t rows) { return {elements(count * rows * kWidth), rows}; }
  HRM_INLINE FloatPanels float_panels(int64_t count, int64_t rows) { return {floats(count * rows * kWidth), rows}; }
  HRM_INLINE Element* elements(int64_t count) { return reinterpret_cast<Element*>(floats(floats_for(count))); }
  HRM_INLINE float* floats(int64_t count) {
    float* taken = next;
    next += count;
    return taken;
  }
};

// The order of a matrix' columns in its panels: columns come in runs, each padded to whole panels.
// interleaved: for gate_up, each panel holds kLanes columns of gate and the same columns of up.
struct Columns {
  int64_t runs, run;
  bool interleaved = false;

  HRM_INLINE int64_t panels() const { return interleaved ? 2 * panels_for(run) : runs * panels_for(run); }
  HRM_INLINE int64_t real() const { return interleaved ? 2 * run : runs * run; }

  // The column at a lane of a panel, or -1 for padding. It divides, so do not call it for every element.
  HRM_INLINE int64_t column(int64_t panel, int64_t lane) const {
    if (interleaved) {
      const int64_t inner = panel * kLanes + lane % kLanes;
      return inner < run ? lane / kLanes * run + inner : -1;
    }
    const int64_t within = (runs == 1 ? panel : panel % panels_for(run)) * kWidth + lane;
    return within < run ? (runs == 1 ? 0 : panel / panels_for(run) * run) + within : -1;
  }
  // The first column of a panel whose lanes are kWidth consecutive columns, or -1 for other panels.
  HRM_INLINE int64_t whole(int64_t panel) const {
    if (interleaved) return -1;
    const int64_t first = column(panel, 0);
    return column(panel, kWidth - 1) < 0 ? -1 : first;
  }
};

// Copies row `row` of a row-major matrix into row `to` of panels.
template <class T>
HRM_INLINE void unpack_row(const T* matrix, int64_t row, Columns columns, Panels out, int64_t to) {
  const T* from = matrix + row * columns.real();
  for (int64_t panel = 0; panel < columns.panels(); ++panel) {
    Element* lanes = out.at(panel, to);
    if (const int64_t first = columns.whole(panel); first >= 0) {
      const T* run = from + first;
      store(lanes, load(run));
      store(lanes + kLanes, load(run + kLanes));
    } else {
      for (int lane = 0; lane < kWidth; ++lane) {
        const int64_t column = columns.column(panel, lane);
        assign(lanes[lane], column < 0 ? 0.0f : to_float(from[column]));
      }
    }
  }
}

template <class T>
HRM_INLINE void pack_row(Panels panels, int64_t from, Columns columns, T* matrix, int64_t row) {
  T* to = matrix + row * columns.real();
  for (int64_t panel = 0; panel < columns.panels(); ++panel) {
    const Element* lanes = panels.at(panel, from);
    if (const int64_t first = columns.whole(panel); first >= 0) {
      T* run = to + first;
      store(run, load(lanes));
      store(run + kLanes, load(lanes + kLanes));
    } else {
      for (int lane = 0; lane < kWidth; ++lane) {
        const int64_t column = columns.column(panel, lane);
        if (column >= 0) assign(to[column], to_float(lanes[lane]));
      }
    }
  }
}

}  // namespace hrm::HRM_ISA

#if defined(HRM_PAIRS)
#include "cpu/bfloat16_product.h"
#else
#include "cpu/float32_product.h"
#endif
