#include "cpu/tables.h"

#include "cpu/element.h"

namespace hrm::HRM_ISA {

// Replaces the functions that this instruction set has; dispatch.cpp names the table.
void add(hrm_cpu_kernels& table) {
  table.panel_width = kWidth;
  table.tile_rows = kTileRows;
  table.element_bytes = sizeof(Element);
  add_blocks(table);
  add_linear(table);
  add_rope_attention(table);
  add_token_mixing(table);
#if !defined(HRM_PAIRS)
  add_checksum(table);
  add_conv_swiglu(table);
  add_pointwise(table);
  add_stablemax(table);
  add_optimizers(table);
#endif
}

#if !defined(HRM_PAIRS)
const hrm_cpu_kernels& table() {
  static const hrm_cpu_kernels filled = [] {
    hrm_cpu_kernels kernels{};
    add(kernels);
    return kernels;
  }();
  return filled;
}
#endif

}  // namespace hrm::HRM_ISA
