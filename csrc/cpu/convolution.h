// The inside of a ConvSwiGLU, over the rows of panels: y = silu(gate) * up, c[t] = before * y[t - 1] + now * y[t] +
// bias and its result h = silu(c). `before`, `now` and `bias` are of each channel; y[-1] is 0 for each row of the
// batch.
//
// One call computes some rows. Each needs a row of its neighbours: y of the row before, and backwards dc of the row
// after, so the calls of all rows are done before the next step starts.
#pragma once

#include "cpu/panels.h"

namespace hrm::HRM_ISA {

struct Convolution {
  int64_t positions;
  Columns inner;
  const float* taps = nullptr;  // for each panel: before, now and bias

  int64_t floats() const { return 3 * inner.panels() * kWidth; }

  template <class T>
  static void pack(const T* weight, const T* biases, Columns inner, int64_t panel, float* taps) {
    float* to = taps + panel * 3 * kWidth;
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      const int64_t i = inner.column(panel, lane);
      to[lane] = i < 0 ? 0.0f : to_float(weight[2 * i]);
      to[kWidth + lane] = i < 0 ? 0.0f : to_float(weight[2 * i + 1]);
      to[2 * kWidth + lane] = i < 0 ? 0.0f : to_float(biases[i]);
    }
  }

  // h of rows [first, first + rows) from y of all rows; `out` starts at row `first`.
  HRM_INLINE void forward(Panels y, int64_t first, int64_t rows, Panels out) const {
    for_channels([&](int64_t panel, int64_t half, Vec before, Vec now, Vec bias) HRM_ALWAYS {
      int64_t position = first % positions;
      Vec last = position ? load(y.at(panel, first - 1) + half) : Vec{};
      for (int64_t row = 0; row < rows; ++row) {
        const Vec here = load(y.at(panel, first + row) + half), c = before * last + now * here + bias;
        store(out.at(panel, row) + half, c * sigmoid(c));
        const bool ends = ++position == positions;
        last = ends ? Vec{} : here;
        if (ends) position = 0;
      }
    });
  }

  // y and h of rows [first, first + rows) from gate_up, and dc in place of dh.
  HRM_INLINE void backward(Panels gate_up, int64_t first, int64_t rows, Panels y, Panels h, Panels dc) const {
    for_channels([&](int64_t panel, int64_t half, Vec before, Vec now, Vec bias) HRM_ALWAYS {
      const auto activated = [&](int64_t row) HRM_ALWAYS {
        const Element* from = gate_up.at(2 * panel + half / kLanes, row);
        const Vec gate = load(from);
        return gate * sigmoid(gate) * load(from + kLanes);
      };
      int64_t position = first % positions;
      Vec last = position ? activated(first - 1) : Vec{};
      for (int64_t row = first; row < first + rows; ++row) {
        const Vec here = activated(row), c = before * last + now * here + bias;
        const Vec s = sigmoid(c), result = c * s;
        Element* gradient = dc.at(panel, row) + half;
        store(gradient, load(gradient) * (s + result * (1.0f - s)));
        store(h.at(panel, row) + half, result);
        store(y.at(panel, row) + half, here);
        const bool ends = ++position == positions;
        last = ends ? Vec{} : here;
        if (ends) position = 0;
      }
    });
  }

  // The gradient of gate_up for rows [first, first + rows), from dc of all rows: dy[t] = now dc[t] + before dc[t + 1].
  HRM_INLINE void gate_up_backward(Panels gate_up, Panels dc, int64_t first, int64_t rows, Panels dgate_up) const {
    for_channels([&](int64_t panel, int64_t half, Vec before, Vec now, Vec) HRM_ALWAYS {
      int64_t position = first % positions;
      for (int64_t row = first; row < first + rows; ++row) {
        const bool ends = ++position == positions;
        if (ends) position = 0;
        const Vec after = ends ? Vec{} : load(dc.at(panel, row + 1) + half);
        const Vec dy = now * load(dc.at(panel, row) + half) + before * after;
        const Element* from = gate_up.at(2 * panel + half / kLanes, row);
        Element* to = dgate_up.at(2 * panel + half / kLanes, row);
        const Vec gate = load(from), up = load(from + kLanes), s = sigmoid(gate), silu = gate * s;
        store(to, dy * up * (s + silu * (1.0f - s)));
        store(to + kLanes, dy * silu);
      }
    });
  }

  // The gradients of the channels of one panel, over `rows` rows: the sums of dc[t] y[t - 1], dc[t] y[t] and dc[t].
  // fresh: they replace those in memory; else they are added.
  template <class T>
  void add_gradients(Panels y, Panels dc, int64_t rows, int64_t panel, bool fresh, T* dweight, T* dbias) const {
    constexpr int64_t kPart = 32;  // rows of a partial sum, which keeps rounding small
    double totals[3][kWidth] = {};
    for (int half = 0; half < kWidth; half += kLanes) {
      Vec last{};
      int64_t position = 0;
      for (int64_t first = 0; first < rows; first += kPart) {
        const int64_t end = first + kPart < rows ? first + kPart : rows;
        Vec sums[3] = {};
        for (int64_t row = first; row < end; ++row) {
          const Vec gradient = load(dc.at(panel, row) + half), here = load(y.at(panel, row) + half);
          sums[0] += gradient * last;
          sums[1] += gradient * here;
          sums[2] += gradient;
          const bool ends = ++position == positions;
          last = ends ? Vec{} : here;
          if (ends) position = 0;
        }
        for (int which = 0; which < 3; ++which) {
          for (int lane = 0; lane < kLanes; ++lane) totals[which][half + lane] += sums[which][lane];
        }
      }
    }
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      const int64_t i = inner.column(panel, lane);
      if (i < 0) continue;
      const auto add = [&](T& to, double total)
                           HRM_ALWAYS { assign(to, static_cast<float>(fresh ? total : to_float(to) + total)); };
      if (dweight) {
        add(dweight[2 * i], totals[0][lane]);
        add(dweight[2 * i + 1], totals[1][lane]);
      }
      if (dbias) add(dbias[i], totals[2][lane]);
    }
  }

 private:
  // Calls each(panel, first lane, before, now, bias) for every register of channels.
  template <class Each>
  HRM_INLINE void for_channels(Each each) const {
    for (int64_t panel = 0; panel < inner.panels(); ++panel) {
      for (int64_t half = 0; half < kWidth; half += kLanes) {
        const float* of = taps + panel * 3 * kWidth + half;
        each(panel, half, load(of), load(of + kWidth), load(of + 2 * kWidth));
      }
    }
  }
};

}  // namespace hrm::HRM_ISA
