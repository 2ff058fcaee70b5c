// The launchers of the CUDA kernels. C linkage and plain pointers: callable from any language, and from tests without
// Python. Callers check the arguments (csrc/ffi does it for Python) and make the tensors' device current. `stream` is a
// cudaStream_t. Each launcher returns nullptr, or an error message.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// y[i] += a * x[i] for i in [0, n). x may be y. The self-test of calls from Python to a GPU.
const char* hrm_cuda_axpy(float a, const float* x, float* y, int64_t n, void* stream);

// The weights of a block, bfloat16 [out, in]: hrm_kernels.BlockWeights.
struct hrm_block_weights {
  const void *qkv, *o, *gate_up, *down;
};

enum { HRM_MAX_LAYERS = 16 };

// The no-gradient part of a segment: H_cycles times { L_cycles times z_L = L(z_L, z_H + x); z_H = H(z_H, z_L) },
// without the last update of each. With H_cycles 2 and L_cycles 0 it is one pass of H with injection z_L, which does
// not read x. States, x and weights are bfloat16, aligned to 16 bytes. hrm_cuda_recurrent_cycles_reason checks the
// sizes.
struct hrm_recurrent_cycles {
  hrm_block_weights H[HRM_MAX_LAYERS], L[HRM_MAX_LAYERS];
  int32_t H_layers, L_layers, H_cycles, L_cycles;
  int32_t batch, positions, width, heads, head_dim, inner;  // B, S, D, H, d, I
  float eps;
  const void *z_H, *z_L, *x;  // [B, S, D], read only
  void *new_z_H, *new_z_L;    // [B, S, D]; new_z_L is written only if L is updated
  const float *cos, *sin;     // [>= S, d], or nullptr both
  void* workspace;            // hrm_cuda_recurrent_cycles_workspace bytes, aligned to 16
};

// Why the sizes or the current device are not supported, or nullptr. Reads only the sizes in `problem`.
const char* hrm_cuda_recurrent_cycles_reason(const hrm_recurrent_cycles* problem);
size_t hrm_cuda_recurrent_cycles_workspace(const hrm_recurrent_cycles* problem);
const char* hrm_cuda_recurrent_cycles(const hrm_recurrent_cycles* problem, void* stream);

// The element types of tensors.
enum hrm_dtype { HRM_FLOAT32, HRM_BFLOAT16, HRM_FLOAT16 };

enum { HRM_SHORT_POSITIONS = 128 };

// Full attention over packed qkv with RoPE on q and k. S is 1 to 128, d 32, 64 or 128, B H below 2^31;
// tensors are aligned to 16 bytes, tables to 8.
struct hrm_rope_attention {
  int32_t batch, positions, heads, head_dim;  // B, S, H, d
  int32_t dtype;                              // HRM_BFLOAT16 or HRM_FLOAT16
  const void* qkv;                            // [B, S, 3 H d]
  const float *cos, *sin;                     // [>= S, d], or nullptr both: no rotation
  void* out;                                  // [B, S, H d], written by forward
  float* lse;                                 // [B, H, S], to base 2: written by forward, or nullptr; read by backward
  const void* dout;                           // [B, S, H d], read by backward
  void* dqkv;                                 // [B, S, 3 H d], written by backward
};

const char* hrm_cuda_rope_attention_forward(const hrm_rope_attention* problem, void* stream);
const char* hrm_cuda_rope_attention_backward(const hrm_rope_attention* problem, void* stream);

// A parameter of a step of AdamATan2: contiguous arrays of numel elements.
struct hrm_adam_parameter {
  void* p;
  const void* g;
  void *m, *v;  // exp_avg, exp_avg_sq
  void* copy;   // or nullptr
  int64_t numel;
  float* count;  // number of previous steps: on the device with `arrived`, else on the host
};

// A step of AdamATan2: hrm_kernels.optim. Adds 1 to counts on the device; only reads counts on the host.
struct hrm_adam_atan2 {
  const hrm_adam_parameter* parameters;
  int64_t count;              // number of parameters
  int32_t dtype, copy_dtype;  // hrm_dtype; copy_dtype is -1 without copies
  double lr, beta1, beta2, weight_decay;
  const float* device_lr;  // on the device, replaces lr, or nullptr; only with `arrived`
  unsigned* arrived;       // one zero on the device, again zero afterwards, or nullptr
};
const char* hrm_cuda_adam_atan2(const hrm_adam_atan2* problem, void* stream);

// A step of SparseSignSGD on one table.
struct hrm_sparse_sign_sgd {
  void* weights;      // [table_rows, columns]
  const void* ids;    // [rows], int64 if wide_ids, else int32; ids that are not rows of the table are skipped
  const void* grads;  // [rows, columns]
  int64_t table_rows, rows, columns;
  int32_t dtype, wide_ids;       // dtype: hrm_dtype of weights and grads
  const float* device_lr;        // on the device, replaces lr and keep, or nullptr
  float lr, keep, weight_decay;  // keep = 1 - lr weight_decay
};
const char* hrm_cuda_sparse_sign_sgd(const hrm_sparse_sign_sgd* problem, void* stream);

// Stablemax cross entropy. The backward pass reads total and others from the forward pass.
struct hrm_stablemax {
  const void* logits;            // [rows, columns]
  const void* labels;            // [rows], int64 if wide_labels, else int32
  float *loss, *total, *others;  // [rows]; total: sum of s(logits), others: the same without the label
  int64_t* argmax;               // [rows], or nullptr
  const float* dloss;            // [rows]
  void* dlogits;                 // [rows, columns]
  int64_t rows, ignore_index;
  int32_t columns, dtype, wide_labels;
};
const char* hrm_cuda_stablemax_forward(const hrm_stablemax* problem, void* stream);
const char* hrm_cuda_stablemax_backward(const hrm_stablemax* problem, void* stream);

// Why the current device cannot run these kernels, or nullptr. For example, the library may lack its target.
const char* hrm_cuda_device_reason(void);

}  // extern "C"
