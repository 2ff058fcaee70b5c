// The CUDA kernels' launchers. C linkage and plain pointers: callable from any language, and from tests without Python.
// Callers have checked what the pointers point to (csrc/ffi does it for Python), and made the tensors' device current.
// `stream` is a cudaStream_t. Each returns nullptr, or what went wrong.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// y[i] += a * x[i] for i in [0, n). x may be y. The self-test of the road from Python to a GPU.
const char* hrm_cuda_axpy(float a, const float* x, float* y, int64_t n, void* stream);

// The weights of a block, bfloat16 [out, in]: hrm_kernels.BlockWeights.
struct hrm_block_weights {
  const void *qkv, *o, *gate_up, *down;
};

enum { HRM_MAX_LAYERS = 16 };

// The no-gradient part of a segment: H_cycles times, L_cycles times z_L = L(z_L, z_H + x), then z_H = H(z_H, z_L), but
// for the last update of each. With H_cycles 2 and L_cycles 0 it is one pass of H with injection z_L; x is not read
// then. States, x and weights are bfloat16, aligned to 16 bytes; sizes as hrm_cuda_recurrent_cycles_reason allows them.
struct hrm_recurrent_cycles {
  hrm_block_weights H[HRM_MAX_LAYERS], L[HRM_MAX_LAYERS];
  int32_t H_layers, L_layers, H_cycles, L_cycles;
  int32_t batch, positions, width, heads, head_dim, inner;  // B, S, D, H, d, I
  float eps;
  const void *z_H, *z_L, *x;     // [B, S, D], not written to
  void *new_z_H, *new_z_L;       // [B, S, D]; new_z_L is written only where there is an update of L
  const float *cos, *sin;        // [>= S, d], or nullptr both
  void* workspace;               // of hrm_cuda_recurrent_cycles_workspace bytes, aligned to 16
};

// Why sizes or the current device are not served, or nullptr. Looks at the sizes in `problem` only.
const char* hrm_cuda_recurrent_cycles_reason(const hrm_recurrent_cycles* problem);
size_t hrm_cuda_recurrent_cycles_workspace(const hrm_recurrent_cycles* problem);
const char* hrm_cuda_recurrent_cycles(const hrm_recurrent_cycles* problem, void* stream);

}  // extern "C"
