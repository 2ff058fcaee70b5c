// How far a call has moved its states, measured where they are written: no other pass reads them.
#pragma once

#include <cmath>

#include "cpu/panels.h"

namespace hrm::HRM_ISA {

// Writes row `row` of a state, from panels, to a matrix: start + weight * (state - start), with the same row of
// `start`. squares[0], [1]: the sums of squares of state - start, and of what is written.
template <class T>
HRM_INLINE void pack_moved(Panels state, int64_t row, Columns columns, const T* start, T* out, float weight,
                           float* squares) {
  const T* from = start + row * columns.real();
  T* to = out + row * columns.real();
  Vec changed{}, written{};
  float rest_changed = 0.0f, rest_written = 0.0f;
  for (int64_t panel = 0; panel < columns.panels(); ++panel) {
    const Element* lanes = state.at(panel, row);
    if (const int64_t first = columns.whole(panel); first >= 0) {
      for (int64_t half = 0; half < kWidth; half += kLanes) {
        const Vec old = load(from + first + half), now = load(lanes + half), change = now - old;
        const Vec end = weight == 1.0f ? now : old + change * weight;  // the same bits as without a weight
        changed += change * change;
        written += end * end;
        store(to + first + half, end);
      }
      continue;
    }
    for (int lane = 0; lane < kWidth; ++lane) {
      const int64_t column = columns.column(panel, lane);
      if (column < 0) continue;
      const float old = to_float(from[column]), now = to_float(lanes[lane]), change = now - old;
      const float end = weight == 1.0f ? now : old + change * weight;
      rest_changed += change * change;
      rest_written += end * end;
      assign(to[column], end);
    }
  }
  squares[0] = sum(changed) + rest_changed;
  squares[1] = sum(written) + rest_written;
}

// change[0], [1]: the squares of all rows of one batch row, in their order, for each of `count` states
// [states][batch * positions][2].
inline void add_squares(const float* squares, int64_t count, int64_t batches, int64_t batch, int64_t positions,
                        float* change) {
  double sums[2] = {};
  for (int64_t state = 0; state < count; ++state) {
    const float* from = squares + 2 * (state * batches + batch) * positions;
    for (int64_t i = 0; i < 2 * positions; ++i) sums[i % 2] += from[i];
  }
  for (int i = 0; i < 2; ++i) change[i] = static_cast<float>(sums[i]);
}

}  // namespace hrm::HRM_ISA
