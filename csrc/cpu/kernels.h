// The interface of the CPU kernels: one table of functions per instruction set, chosen at run time.
// Plain pointers and C linkage; callers check the arguments (csrc/ffi does it for Python).
//
// Inputs and outputs are contiguous, float32 or bfloat16 as `dtype` says; sums are float32. `packed` and `saved` are
// buffers whose contents only the kernels of the same table read; their sizes are counted in floats. `threads` is the
// largest number of threads; no result depends on it.
#pragma once

#include <cstdint>

extern "C" {

enum hrm_dtype { HRM_FLOAT32 = 0, HRM_BFLOAT16 = 1 };

// Sizes of the blocks of a module. A block either attends (heads, head_dim) or mixes positions by a SwiGLU of inner
// size `mixing`; the other sizes are 0. A block that attends may have a ConvSwiGLU.
struct hrm_shape {
  int64_t batch, positions, dim, heads, head_dim, inner;
  float eps;
  int64_t mixing = 0;
  bool convolves = false;
};

// The weights of one block, [out, in]. A block that mixes positions has its gate_up [2 mixing, positions] and down
// [positions, mixing] for that in place of qkv and o. One with ConvSwiGLU has besides the conv [inner, 2] and conv_bias
// [inner] of its convolution.
struct hrm_weights {
  const void *qkv, *o, *gate_up, *down;
  const void *conv = nullptr, *conv_bias = nullptr;
};

// Gradients of the weights, in their dtype; nullptr for gradients that are not needed.
struct hrm_weight_gradients {
  void *qkv, *o, *gate_up, *down;
  void *conv = nullptr, *conv_bias = nullptr;
};

// How far updates move a state, and their noise: state = (1 - weight) state + weight * update + scale * normal numbers.
struct hrm_damping {
  const float* weights;  // [batch]
  float scale;
  const int64_t* seeds;  // [batch]; nullptr without noise
  const int64_t* steps;  // [batch], updates of each row before
};

// One update of a recurrent module: state += injection (+ injection2), then its blocks.
struct hrm_update {
  int state, injection, injection2;  // indices of states; -1: no injection
  const float* packed;               // `layers` blocks, packed by pack_blocks
  int64_t layers;
  const hrm_damping* damping = nullptr;  // nullptr: a plain update; else there is an injection
  int64_t number = 0;                    // of the update, added to the steps of damping
  const float* scales = nullptr;         // of pre-norm blocks, see hrm_scales; nullptr: post-norm blocks
};

// Scales of pre-norm blocks, [3, D] for each, padded by zeros to whole panels: `keep` of
// x = keep * x + sublayer(norm(x)), then `start` and `inject` of the first block's x = start * state + inject *
// injection.
enum hrm_scales { HRM_KEEP = 0, HRM_START = 1, HRM_INJECT = 2 };

// How far a call moves its states: a row of a state ends at start + weight * (result - start).
struct hrm_movement {
  const float* weights;  // [batch]; nullptr: 1
  float* change;         // [batch, 2]: the squares of result - start, and of the row's end, summed over its states
};

struct hrm_cpu_kernels {
  const char* name;  // of the instruction set
  // kWidth and kTileRows of vec.h and the size of Element (element.h), which determine the layout of `saved`.
  int64_t panel_width, tile_rows, element_bytes;

  // Number of floats of a packed block, in either direction.
  int64_t (*packed_size)(hrm_shape shape);

  // Packs the weights of blocks in the order in which products read them: for outputs (backward = 0) or for gradients
  // of inputs (1).
  void (*pack_blocks)(hrm_shape shape, const hrm_weights* weights, int64_t layers, int dtype, int backward,
                      float* packed, int threads);

  // A checksum of all bytes of `count` arrays, to detect changes.
  uint64_t (*checksum)(const void* const* arrays, const int64_t* bytes, int64_t count, int threads);

  // Runs updates one after another, in place on copies of `count` states [B, S, D]; copies the states that an update
  // wrote to `outputs`, moved as `movement` says unless it is nullptr. cos, sin: [>= S, head_dim] float32, or nullptr.
  void (*run_updates)(hrm_shape shape, const hrm_update* updates, int64_t count, const void* const* states,
                      int64_t state_count, void* const* outputs, int dtype, const float* cos, const float* sin,
                      const hrm_movement* movement, int threads);

  // Number of floats that the forward saves of `cycles` passes through `layers` blocks for blocks_backward.
  int64_t (*saved_size)(hrm_shape shape, int64_t layers, int64_t cycles, int recompute);

  // Runs blocks on x (+ injection, unless nullptr), then `cycles` - 1 times on the result (+ injection), and fills
  // `saved`. With damping, which may be nullptr and needs cycles = 1, out is x moved towards the result of the blocks;
  // the backward is still that of the blocks.
  void (*blocks_forward)(hrm_shape shape, const float* packed, int64_t layers, int64_t cycles, const void* x,
                         const void* injection, void* out, int dtype, const float* cos, const float* sin, int recompute,
                         float* saved, const hrm_damping* damping, int threads);

  // Computes the gradients of x, of the injection (unless dinjection is nullptr; with one cycle it is that of x) and of
  // the weights from the gradient of the output. Blocks that mix positions take one cycle only.
  void (*blocks_backward)(hrm_shape shape, const float* packed, const float* packed_backward, int64_t layers,
                          int64_t cycles, const void* dout, void* dx, void* dinjection,
                          const hrm_weight_gradients* dweights, int dtype, const float* cos, const float* sin,
                          int recompute, const float* saved, int threads);

  // Standard normal numbers [batch, positions, dim] float32, from the seeds and steps of the rows.
  void (*noise)(int64_t batch, int64_t positions, int64_t dim, const int64_t* seeds, const int64_t* steps,
                uint32_t stream, float* out, int threads);

  // [B, S, 3 H d] -> [B, S, H d], and the log-sum-exp of the scores, [B, H, S], for the backward.
  void (*rope_attention_forward)(hrm_shape shape, const void* qkv, void* out, float* lse, int dtype, const float* cos,
                                 const float* sin, int threads);
  void (*rope_attention_backward)(hrm_shape shape, const void* dout, const void* qkv, const void* out, const float* lse,
                                  void* dqkv, int dtype, const float* cos, const float* sin, int threads);

  // out = u / rms(u), u = x + residual; rstd[rows] = 1 / rms.
  void (*add_rms_norm_forward)(int64_t rows, int64_t columns, const void* x, const void* residual, float eps, void* out,
                               float* rstd, int dtype, int threads);
  void (*add_rms_norm_backward)(int64_t rows, int64_t columns, const void* dout, const void* x, const void* residual,
                                const float* rstd, void* du, int dtype, int threads);

  // [rows, 2 inner] -> [rows, inner]
  void (*swiglu_forward)(int64_t rows, int64_t inner, const void* gate_up, void* out, int dtype, int threads);
  void (*swiglu_backward)(int64_t rows, int64_t inner, const void* dout, const void* gate_up, void* dgate_up, int dtype,
                          int threads);

  // gate_up [batch, positions, 2 inner] -> [batch, positions, inner]; weight [inner, 2]: of the position before, and of
  // the position itself; bias [inner].
  void (*conv_swiglu_forward)(int64_t batch, int64_t positions, int64_t inner, const void* gate_up, const void* weight,
                              const void* bias, void* out, int dtype, int threads);
  void (*conv_swiglu_backward)(int64_t batch, int64_t positions, int64_t inner, const void* dout, const void* gate_up,
                               const void* weight, const void* bias, void* dgate_up, void* dweight, void* dbias,
                               int dtype, int threads);

  // out [rows, outputs] = x [rows, inputs] @ weights.T + bias, from weights [outputs, inputs] that pack_linear packed
  // into linear_packed_size floats. bias: in the dtype of x, or nullptr.
  int64_t (*linear_packed_size)(int64_t outputs, int64_t inputs);
  void (*pack_linear)(int64_t outputs, int64_t inputs, const void* weights, int dtype, float* packed, int threads);
  void (*linear)(int64_t rows, int64_t outputs, int64_t inputs, const void* x, const float* packed, const void* bias,
                 void* out, int dtype, int threads);
  // The same bits from weights as they are, for few rows: packing all weights first would take longer.
  void (*linear_unpacked)(int64_t rows, int64_t outputs, int64_t inputs, const void* x, const void* weights,
                          const void* bias, void* out, int dtype, int threads);

  // x [batch, positions, dim] -> the same shape, with gate_up [2 inner, positions] and down [positions, inner]: for
  // each channel t, u / rms(u) with u = t + down(swiglu(gate_up(t))). The backward recomputes u from x.
  void (*token_mixing_forward)(int64_t batch, int64_t positions, int64_t dim, int64_t inner, const void* x,
                               const void* gate_up, const void* down, float eps, void* out, int dtype, int threads);
  void (*token_mixing_backward)(int64_t batch, int64_t positions, int64_t dim, int64_t inner, const void* dout,
                                const void* x, const void* gate_up, const void* down, float eps, void* dx,
                                void* dgate_up, void* ddown, int dtype, int threads);

  // loss[rows]; others[rows]: the sum of s over all columns but the label; argmax[rows] unless nullptr. Labels are
  // below vocabulary, or ignore_index.
  void (*stablemax_forward)(int64_t rows, int64_t vocabulary, const void* logits, const int64_t* labels,
                            int64_t ignore_index, float* loss, double* others, int64_t* argmax, int dtype, int threads);
  void (*stablemax_backward)(int64_t rows, int64_t vocabulary, const float* dloss, const void* logits,
                             const int64_t* labels, int64_t ignore_index, const double* others, void* dlogits,
                             int dtype, int threads);

  // One optimiser step on `count` parameters; copies (bfloat16) may be nullptr. decay1, decay2: 1 - beta^t of
  // each parameter.
  void (*adam_atan2)(int64_t count, float* const* params, const float* const* grads, float* const* exp_avgs,
                     float* const* exp_avg_sqs, void* const* copies, const int64_t* sizes, const double* decay1,
                     const double* decay2, double lr, double beta1, double beta2, double weight_decay, int threads);
};

// For each distinct identifier, once: w = w * (1 - lr * weight_decay) - lr * sign(sum of its gradients).
// weights [rows, columns], ids [count], grads [count, columns]. Returns -1, or the index of an identifier that is not
// a row; in this case no weight has changed.
int64_t hrm_cpu_sparse_sign_sgd(float* weights, int64_t rows, int64_t columns, const int64_t* ids, const float* grads,
                                int64_t count, double lr, double weight_decay);

// Returns the table that computes calls of this dtype with instruction set `name`, or with the best one of this machine
// if name is nullptr. Returns nullptr for an unknown name, or one that this machine cannot run.
//
// "amx" and "avx512_bf16" compute bfloat16 calls with bfloat16 multiplications and float32 calls as "avx512" does;
// "avx512", "avx2" and "portable" compute both in float32. "amx_emulated" and "avx512_bf16_emulated", for tests, do the
// arithmetic of the first two in common instructions.
const hrm_cpu_kernels* hrm_cpu(const char* name, int dtype);

// What becomes of AMX on this machine: "used", or why not.
const char* hrm_cpu_amx();

// y[i] += a * x[i] for i in [0, n). x may be y.
// The self-test of calls from Python: hrm_kernels/native.py checks its result.
void hrm_cpu_axpy(float a, const float* x, float* y, int64_t n);

}  // extern "C"
