// Damped, noisy updates: z = (1 - weight) z + weight f + scale * normal numbers.
#pragma once

#include "cpu/kernels.h"
#include "cpu/noise.h"
#include "cpu/panels.h"

namespace hrm::HRM_ISA {

constexpr uint32_t kUpdateStream = 0;  // UPDATE of hrm_kernels/noise.py

// The state that an update damps; `damping` is nullptr for plain updates.
struct Damped {
  const hrm_damping* damping = nullptr;
  Panels state{nullptr, 0};  // z before and after the update
  int64_t number = 0;        // of the update, added to the steps of its row

  // Row `row` of the state from the same row of the plain update; columns from `dim` on stay 0.
  HRM_INLINE void blend(Panels update, int64_t row, int64_t positions, int64_t dim) const {
    const int64_t batch = row / positions, position = row % positions;
    const float weight = damping->weights[batch], kept = 1.0f - weight;
    const bool noisy = damping->seeds && damping->scale != 0.0f;
    float numbers[kChunk];
    for (int64_t first = 0; first < dim; first += kChunk) {
      if (noisy) {
        normal_numbers(static_cast<uint64_t>(damping->seeds[batch]),
                       static_cast<uint32_t>(damping->steps[batch] + number), static_cast<uint32_t>(position),
                       kUpdateStream, first / kChunk, numbers);
        for (int64_t column = dim - first; column < kChunk; ++column) numbers[column] = 0.0f;
      }
      for (int64_t lane = 0; lane < kChunk && first + lane < dim; lane += kLanes) {
        const int64_t panel = (first + lane) / kWidth, within = lane % kWidth;
        Element* z = state.at(panel, row) + within;
        const Vec f = load(update.at(panel, row) + within);
        Vec next = load(z) * kept + f * weight;
        if (noisy) next = next + load(numbers + lane) * damping->scale;
        store(z, next);
      }
    }
  }
};

}  // namespace hrm::HRM_ISA
