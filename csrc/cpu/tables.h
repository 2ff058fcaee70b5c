// Each kernel file adds its functions to the table of its instruction set.
#pragma once

#include "cpu/kernels.h"

namespace hrm::HRM_ISA {

void add_blocks(hrm_cpu_kernels& table);
void add_checksum(hrm_cpu_kernels& table);
void add_conv_swiglu(hrm_cpu_kernels& table);
void add_linear(hrm_cpu_kernels& table);
void add_rope_attention(hrm_cpu_kernels& table);
void add_pointwise(hrm_cpu_kernels& table);
void add_token_mixing(hrm_cpu_kernels& table);
void add_stablemax(hrm_cpu_kernels& table);
void add_optimizers(hrm_cpu_kernels& table);

}  // namespace hrm::HRM_ISA
