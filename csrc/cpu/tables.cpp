#include "cpu/tables.h"

#include "cpu/element.h"

#define HRM_TEXT(name) HRM_TEXT_OF(name)
#define HRM_TEXT_OF(name) #name

namespace hrm::HRM_ISA {

const hrm_cpu_kernels& table() {
  static const hrm_cpu_kernels filled = [] {
    hrm_cpu_kernels kernels{};
    kernels.name = HRM_TEXT(HRM_ISA);
    kernels.panel_width = kWidth;
    kernels.tile_rows = kTileRows;
    kernels.element_bytes = sizeof(Element);
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
