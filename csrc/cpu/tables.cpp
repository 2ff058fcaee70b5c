#include "cpu/tables.h"

#include "cpu/vec.h"

namespace hrm::HRM_ISA {

const hrm_cpu_kernels& table() {
  static const hrm_cpu_kernels filled = [] {
    hrm_cpu_kernels kernels{};
    kernels.panel_width = kWidth;
    kernels.tile_rows = kTileRows;
    add_blocks(kernels);
    add_checksum(kernels);
    add_linear(kernels);
    add_rope_attention(kernels);
    add_pointwise(kernels);
    add_token_mixing(kernels);
    add_stablemax(kernels);
    add_optimizers(kernels);
    return kernels;
  }();
  return filled;
}

}  // namespace hrm::HRM_ISA
