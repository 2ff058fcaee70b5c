// Loops over rows, divided among threads.
#pragma once

#include <type_traits>

#include "cpu/panels.h"
#include "cpu/team.h"

namespace hrm::HRM_ISA {

// Calls each_row(row) for all rows, in tasks of about `elements` elements.
template <class Rows>
void for_row_blocks(int threads, int64_t rows, int64_t columns, int64_t elements, Rows each_row) {
  const int64_t chunk = columns >= elements ? 1 : elements / (columns ? columns : 1);
  const int64_t tasks = (rows + chunk - 1) / chunk;
  parallel(threads < tasks ? threads : static_cast<int>(tasks), [&](Team::Member& team) {
    team.for_each(tasks, [&](int64_t task) {
      for (int64_t row = task * chunk; row < (task + 1) * chunk && row < rows; ++row) each_row(row);
    });
  });
}

// Calls each(read, write) for whole registers of rows, then once for their last elements: read(row) gives the next
// lanes of a row, write(row, lanes) stores them.
template <class Each>
HRM_INLINE void for_lanes(int64_t columns, Each each) {
  int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
    each([i](const auto* row) HRM_ALWAYS { return load(row + i); },
         [i](auto* row, Vec value) HRM_ALWAYS { store(row + i, value); });
  }
  const int64_t left = columns - i;
  if (left == 0) return;
  each(
      [i, left](const auto* row) {
        std::remove_const_t<std::remove_pointer_t<decltype(row)>> lanes[kLanes] = {};
        std::memcpy(lanes, row + i, left * sizeof *row);
        return load(lanes);
      },
      [i, left](auto* row, Vec value) {
        std::remove_pointer_t<decltype(row)> lanes[kLanes];
        store(lanes, value);
        std::memcpy(row + i, lanes, left * sizeof *row);
      });
}

// Calls each_row(row) for all rows of a matrix, in tasks of a few rows.
template <class Rows>
void for_rows_of_a_matrix(int64_t rows, Team::Member& team, Rows each_row) {
  const int64_t chunk = 32;
  team.for_each((rows + chunk - 1) / chunk, [&](int64_t task) {
    for (int64_t row = task * chunk; row < (task + 1) * chunk && row < rows; ++row) each_row(row);
  });
}

// Converts all rows of a matrix into panels, and back.
template <class T>
void unpack(const T* matrix, Columns columns, Panels to, int64_t rows, Team::Member& team) {
  for_rows_of_a_matrix(rows, team, [&](int64_t row) { unpack_row(matrix, row, columns, to, row); });
}
template <class T>
void pack(Panels from, Columns columns, T* matrix, int64_t rows, Team::Member& team) {
  for_rows_of_a_matrix(rows, team, [&](int64_t row) { pack_row(from, row, columns, matrix, row); });
}

}  // namespace hrm::HRM_ISA
