// Converts between row-major matrices (float32 or bfloat16) and panels, and packs weights in the order products read.
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

// Packs panel `panel` of weights [outputs, inputs] as the right factor of x @ weights.T: for each input the panel's
// outputs.
template <class T>
inline void pack_for_outputs(const T* weights, Columns outputs, Columns inputs, int64_t panel, Element* packed) {
  const int64_t width = inputs.real();
  const T* rows[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) {
    const int64_t output = outputs.column(panel, lane);
    rows[lane] = output < 0 ? nullptr : weights + output * width;
  }
  for (int64_t p = 0; p < inputs.panels(); ++p, packed += kWidth * kWidth) {
    const int64_t first = inputs.whole(p);
    if (first >= 0) {
      for (int quarter = 0; quarter < 4; ++quarter) {  // kLanes inputs x kLanes outputs
        const int k = quarter / 2 * kLanes, lane = quarter % 2 * kLanes;
        Vec square[kLanes];
        for (int i = 0; i < kLanes; ++i) square[i] = rows[lane + i] ? load(rows[lane + i] + first + k) : Vec{};
        transpose(square);
        for (int i = 0; i < kLanes; ++i) store(packed + (k + i) * kWidth + lane, square[i]);
      }
      continue;
    }
    for (int lane = 0; lane < kWidth; ++lane) {
      for (int k = 0; k < kWidth; ++k) {
        const int64_t input = inputs.column(p, k);
        packed[k * kWidth + lane] = rows[lane] && input >= 0 ? to_float(rows[lane][input]) : 0.0f;
      }
    }
  }
}

// Packs panel `panel` of the inputs as the right factor of dy @ weights: for each output the panel's inputs.
template <class T>
inline void pack_for_inputs(const T* weights, Columns outputs, Columns inputs, int64_t panel, Element* packed) {
  const int64_t width = inputs.real(), first = inputs.whole(panel);
  int64_t columns[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) columns[lane] = inputs.column(panel, lane);
  for (int64_t p = 0; p < outputs.panels(); ++p) {
    const int64_t first_output = outputs.whole(p);
    for (int k = 0; k < kWidth; ++k, packed += kWidth) {
      const int64_t output = first_output < 0 ? outputs.column(p, k) : first_output + k;
      const T* row = weights + output * width;
      if (output >= 0 && first >= 0) {
        store(packed, load(row + first));
        store(packed + kLanes, load(row + first + kLanes));
        continue;
      }
      for (int lane = 0; lane < kWidth; ++lane) {
        packed[lane] = output < 0 || columns[lane] < 0 ? 0.0f : to_float(row[columns[lane]]);
      }
    }
  }
}

// Transposes rows [first, first + kWidth) of a head in panels into to[column][kWidth]; rows from `end` on give 0.
HRM_INLINE void transpose_panel(Panels from, int64_t panels, int64_t first, int64_t end, Element* to) {
  const int64_t rows = end - first < kWidth ? end - first : kWidth;
  for (int64_t panel = 0; panel < panels; ++panel, to += kWidth * kWidth) {
    const Element* source = from.at(panel, first);
    if (rows < kWidth) std::memset(to, 0, sizeof(Element) * kWidth * kWidth);
    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 32
      for (int lane = 0; lane < kWidth; ++lane) to[lane * kWidth + row] = source[row * kWidth + lane];
    }
  }
}

}  // namespace hrm::HRM_ISA
