// The Python interface of csrc/cpu: each export checks its tensors and calls a kernel. Loaded by tvm_ffi.load_module.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <sstream>
#include <vector>

#include "cpu/kernels.h"
#include "ffi/checks.h"
#include "ffi/interface.h"

// For wheels: the C++ runtime has this constructor since GCC 9.
#if defined(HRM_PORTABLE) && defined(__GLIBCXX__)
template std::ostringstream::basic_ostringstream();
#endif

namespace hrm {
namespace {

using tvm::ffi::Array;
using tvm::ffi::Optional;
using tvm::ffi::Tensor;

// The tables in use, by dtype.
const hrm_cpu_kernels* kernel_tables[2] = {hrm_cpu(nullptr, HRM_FLOAT32), hrm_cpu(nullptr, HRM_BFLOAT16)};

const hrm_cpu_kernels& kernels(int code) { return *kernel_tables[code]; }

// Selects an instruction set by its name, for tests; "" selects the best one that this machine has.
void use_instruction_set(tvm::ffi::String name) {
  for (int code : {HRM_FLOAT32, HRM_BFLOAT16}) {
    const hrm_cpu_kernels* table = hrm_cpu(name.empty() ? nullptr : name.c_str(), code);
    if (!table) {
      TVM_FFI_THROW(ValueError)
          << "use_instruction_set: this machine does not have " << name
          << "; pass amx, avx512_bf16, avx512, avx2, portable, or an empty string for the best available";
    }
    kernel_tables[code] = table;
  }
}

// The names of the instruction sets that compute calls in float32 and in bfloat16.
tvm::ffi::String instruction_set() { return kernels(HRM_FLOAT32).name; }
tvm::ffi::String bfloat16_instruction_set() { return kernels(HRM_BFLOAT16).name; }
tvm::ffi::String amx() { return hrm_cpu_amx(); }

void axpy(float a, TensorView x, TensorView y) {
  const float* from = cpu_float32("axpy", "x", x);
  float* to = cpu_float32("axpy", "y", y);
  same_shape("axpy", "x", x, "y", y);
  hrm_cpu_axpy(a, from, to, x.numel());
}

int dtype_code(const char* op, const char* name, TensorView tensor) {
  if (tensor.dtype() == kFloat32) return HRM_FLOAT32;
  if (tensor.dtype() != kBFloat16) {
    TVM_FFI_THROW(TypeError) << op << ": " << name << " is " << to_string(tensor.dtype())
                             << "; pass float32 or bfloat16";
  }
  return HRM_BFLOAT16;
}

// The largest size that kernels take: above those of any model, and small enough that products do not overflow.
constexpr int64_t kMaxSize = 1 << 20;

void check_range(const char* op, const char* name, int64_t value, int64_t largest = kMaxSize) {
  if (value < 1 || value > largest) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " is " << value << "; pass 1 to " << largest;
  }
}

// The sizes of blocks. With heads = 0 they mix positions, and `width` is the inner size of the mixing; else it is
// head_dim.
hrm_shape block_shape(const char* op, int64_t batch, int64_t positions, int64_t dim, int64_t heads, int64_t width,
                      int64_t inner, double eps) {
  check_range(op, "D", dim);
  check_range(op, "inner", inner);
  const float e = static_cast<float>(eps);
  if (heads == 0) {
    check_range(op, "S", positions);
    check_range(op, "the inner size of the mixing", width);
    return {batch, positions, dim, 0, 0, inner, e, width};
  }
  check_range(op, "num_heads", heads);
  check_range(op, "head_dim", width);
  check_range(op, "num_heads * head_dim", heads * width);
  return {batch, positions, dim, heads, width, inner, e};
}

int positive_threads(const char* op, int64_t threads) {
  check_range(op, "threads", threads, 4096);
  return static_cast<int>(threads);
}

// A None in a Python list arrives as an undefined tensor; reject it before reading.
void check_defined(const char* op, const char* name, const Array<Tensor>& tensors) {
  for (const Tensor& tensor : tensors) {
    if (!tensor.defined()) TVM_FFI_THROW(TypeError) << op << ": one of " << name << " is None; pass tensors";
  }
}

// The elements of a contiguous CPU tensor of this type and shape.
void* cpu_tensor(const char* op, const char* name, TensorView tensor, DLDataType dtype, std::vector<int64_t> shape) {
  void* data = cpu_elements(op, name, tensor, dtype);
  has_shape(op, name, tensor, shape);
  return data;
}

// The sizes and the dtype of blocks that update a state x [B, S, D].
struct Blocks {
  const char* op;
  hrm_shape shape;
  DLDataType dtype;
  int code, threads;

  Blocks(const char* op_, const char* name, TensorView x, int64_t heads, int64_t width, int64_t inner, double eps,
         int64_t threads_)
      : op(op_), dtype(x.dtype()), code(dtype_code(op_, name, x)), threads(positive_threads(op_, threads_)) {
    if (x.ndim() != 3) {
      TVM_FFI_THROW(ValueError) << op << ": " << name << " has shape " << to_string(x.shape()) << "; pass [B, S, D]";
    }
    shape = block_shape(op, x.size(0), x.size(1), x.size(2), heads, width, inner, eps);
  }

  bool empty() const { return shape.batch * shape.positions == 0; }
  void* state(const char* name, TensorView tensor) const {
    return cpu_tensor(op, name, tensor, dtype, {shape.batch, shape.positions, shape.dim});
  }
  float* floats(const char* name, TensorView tensor, int64_t count) const {
    return static_cast<float*>(aligned(op, name, cpu_tensor(op, name, tensor, kFloat32, {count}), 64));
  }
  float* packed(const char* name, TensorView tensor, int64_t layers) const {
    check_range(op, "layers", layers, 1024);
    return floats(name, tensor, layers * kernels(code).packed_size(shape));
  }
  const float* table(const char* name, Optional<TensorView> tensor) const {
    if (!tensor.has_value()) return nullptr;
    if (shape.mixing)
      TVM_FFI_THROW(ValueError) << op << ": blocks that mix positions have no " << name << "; pass None";
    const TensorView table = tensor.value();
    const float* data = cpu_float32(op, name, table);
    if (table.ndim() != 2 || table.size(0) < shape.positions || table.size(1) != shape.head_dim) {
      TVM_FFI_THROW(ValueError) << op << ": " << name << " has shape " << to_string(table.shape())
                                << "; pass [>= " << shape.positions << ", " << shape.head_dim << "]";
    }
    return data;
  }
};

// The weights of a block, or their gradients: weight(which, sizes) for each.
template <class Weights, class Weight>
Weights each_weight(const hrm_shape& s, Weight weight) {
  const int64_t wide = s.heads * s.head_dim;
  Weights all{};
  all.qkv = weight(0, s.mixing ? std::vector{2 * s.mixing, s.positions} : std::vector{3 * wide, s.dim});
  all.o = weight(1, s.mixing ? std::vector{s.positions, s.mixing} : std::vector{s.dim, wide});
  all.gate_up = weight(2, std::vector{2 * s.inner, s.dim});
  all.down = weight(3, std::vector{s.dim, s.inner});
  if (s.convolves) {
    all.conv = weight(4, std::vector{s.inner, int64_t{2}});
    all.conv_bias = weight(5, std::vector{s.inner});
  }
  return all;
}

struct Tables {
  const float *cos, *sin;
  Tables(const Blocks& blocks, Optional<TensorView> cos_, Optional<TensorView> sin_)
      : cos(blocks.table("cos", cos_)), sin(blocks.table("sin", sin_)) {
    if (!cos != !sin) TVM_FFI_THROW(ValueError) << blocks.op << ": one of cos and sin is None; pass both or neither";
  }
};

// The layout of `saved` (kernels.h).
int64_t panel_width(bool bfloat16) { return kernels(bfloat16).panel_width; }
int64_t tile_rows(bool bfloat16) { return kernels(bfloat16).tile_rows; }
int64_t element_bytes(bool bfloat16) { return kernels(bfloat16).element_bytes; }

// The number of floats of a packed block with weights in float32 or bfloat16.
int64_t packed_size(int64_t dim, int64_t heads, int64_t head_dim, int64_t inner, bool bfloat16) {
  check_range("packed_size", "num_heads", heads);
  return kernels(bfloat16).packed_size(block_shape("packed_size", 1, 1, dim, heads, head_dim, inner, 1));
}
int64_t mixing_packed_size(int64_t positions, int64_t dim, int64_t width, int64_t inner, bool bfloat16) {
  return kernels(bfloat16).packed_size(block_shape("mixing_packed_size", 1, positions, dim, 0, width, inner, 1));
}

// Packs blocks of this shape; all weights are of one dtype.
void pack_weights(const char* op, const Array<Tensor>& weights, const hrm_shape& shape, bool backward,
                  TensorView packed, int threads) {
  const Tensor first = weights[0];
  const int code = dtype_code(op, "weights[0]", first);
  std::vector<hrm_weights> blocks;
  for (size_t i = 0; i < weights.size(); i += shape.convolves ? 6 : 4) {
    blocks.push_back(each_weight<hrm_weights>(shape, [&](size_t which, std::vector<int64_t> sizes) {
      return cpu_tensor(op, "a weight", weights[i + which], first.dtype(), std::move(sizes));
    }));
  }
  const int64_t layers = static_cast<int64_t>(blocks.size());
  check_range(op, "layers", layers, 1024);
  const int64_t size = layers * kernels(code).packed_size(shape);
  float* to = static_cast<float*>(aligned(op, "packed", cpu_tensor(op, "packed", packed, kFloat32, {size}), 64));
  kernels(code).pack_blocks(shape, blocks.data(), layers, code, backward, to, threads);
}

// weights: the four matrices of each block: qkv or mix_gate_up, o or mix_down, gate_up, down.
void pack_blocks(Array<Tensor> weights, int64_t heads, bool backward, TensorView packed, int64_t threads) {
  const char* op = "pack_blocks";
  if (weights.size() == 0 || weights.size() % 4) {
    TVM_FFI_THROW(ValueError) << op << ": weights has " << weights.size() << " tensors; pass four for each block";
  }
  check_defined(op, "weights", weights);
  if (heads) check_range(op, "num_heads", heads);
  const int team = positive_threads(op, threads);
  const Tensor &first = weights[0], &second = weights[1], &down = weights[3];
  if (first.ndim() != 2 || second.ndim() != 2 || down.ndim() != 2 || (heads && first.size(0) % (3 * heads))) {
    TVM_FFI_THROW(ValueError) << op << ": weights[0] has shape " << to_string(first.shape()) << ", weights[1] "
                              << to_string(second.shape()) << ", weights[3] " << to_string(down.shape())
                              << "; pass [3 H d, D], [D, H d] and [D, I], or with num_heads = 0 [2 T, S], [S, T] and "
                              << "[D, I]";
  }
  const int64_t width = heads ? first.size(0) / (3 * heads) : second.size(1);
  const int64_t positions = heads ? 1 : second.size(0);
  pack_weights(op, weights, block_shape(op, 1, positions, down.size(0), heads, width, down.size(1), 1), backward,
               packed, team);
}

// A checksum over all bytes of the weights.
int64_t checksum(Array<Tensor> weights, int64_t threads) {
  const char* op = "checksum";
  check_defined(op, "weights", weights);
  std::vector<const void*> arrays;
  std::vector<int64_t> bytes;
  for (const Tensor& weight : weights) {
    const TensorView view = weight;
    arrays.push_back(cpu_elements(op, "a weight", view, view.dtype()));
    bytes.push_back(view.numel() * view.dtype().bits * view.dtype().lanes / 8);
  }
  return static_cast<int64_t>(
      kernels(HRM_FLOAT32)
          .checksum(arrays.data(), bytes.data(), static_cast<int64_t>(arrays.size()), positive_threads(op, threads)));
}

int64_t linear_packed_size(int64_t outputs, int64_t inputs, bool bfloat16) {
  check_range("linear_packed_size", "outputs", outputs);
  check_range("linear_packed_size", "inputs", inputs);
  return kernels(bfloat16).linear_packed_size(outputs, inputs);
}

float* packed_linear(const char* op, TensorView packed, int64_t outputs, int64_t inputs, int code) {
  check_range(op, "outputs", outputs);
  check_range(op, "inputs", inputs);
  const int64_t size = kernels(code).linear_packed_size(outputs, inputs);
  return static_cast<float*>(aligned(op, "packed", cpu_tensor(op, "packed", packed, kFloat32, {size}), 64));
}

void pack_linear(TensorView weight, TensorView packed, int64_t threads) {
  const char* op = "pack_linear";
  if (weight.ndim() != 2) {
    TVM_FFI_THROW(ValueError) << op << ": weight has shape " << to_string(weight.shape()) << "; pass [out, in]";
  }
  const int code = dtype_code(op, "weight", weight);
  const void* from = cpu_elements(op, "weight", weight, weight.dtype());
  float* to = packed_linear(op, packed, weight.size(0), weight.size(1), code);
  kernels(code).pack_linear(weight.size(0), weight.size(1), from, code, to, positive_threads(op, threads));
}

// The arguments of a product: x [rows, inputs] -> out [rows, outputs].
struct Product {
  int64_t rows, inputs, outputs;
  int code, threads;
  const void *x, *bias;
  void* out;

  Product(const char* op, TensorView x_, Optional<TensorView> bias_, TensorView out_, int64_t threads_) {
    if (x_.ndim() != 2 || out_.ndim() != 2) {
      TVM_FFI_THROW(ValueError) << op << ": x has shape " << to_string(x_.shape()) << " and out "
                                << to_string(out_.shape()) << "; pass [rows, in] and [rows, out]";
    }
    rows = x_.size(0), inputs = x_.size(1), outputs = out_.size(1);
    code = dtype_code(op, "x", x_);
    x = cpu_elements(op, "x", x_, x_.dtype());
    bias = bias_.has_value() ? cpu_tensor(op, "bias", bias_.value(), x_.dtype(), {outputs}) : nullptr;
    out = cpu_tensor(op, "out", out_, x_.dtype(), {rows, outputs});
    threads = positive_threads(op, threads_);
  }
};

void linear(TensorView x, TensorView packed, Optional<TensorView> bias, TensorView out, int64_t threads) {
  const Product p("linear", x, bias, out, threads);
  const float* weights = packed_linear("linear", packed, p.outputs, p.inputs, p.code);
  if (p.rows) kernels(p.code).linear(p.rows, p.outputs, p.inputs, p.x, weights, p.bias, p.out, p.code, p.threads);
}

void linear_unpacked(TensorView x, TensorView weight, Optional<TensorView> bias, TensorView out, int64_t threads) {
  const char* op = "linear_unpacked";
  const Product p(op, x, bias, out, threads);
  check_range(op, "outputs", p.outputs);
  check_range(op, "inputs", p.inputs);
  const void* weights = cpu_tensor(op, "weight", weight, x.dtype(), {p.outputs, p.inputs});
  if (p.rows) {
    kernels(p.code).linear_unpacked(p.rows, p.outputs, p.inputs, p.x, weights, p.bias, p.out, p.code, p.threads);
  }
}

void infer_blocks(TensorView x, Optional<TensorView> injection, TensorView packed, int64_t layers,
                  Optional<TensorView> cos, Optional<TensorView> sin, TensorView out, int64_t heads, int64_t width,
                  int64_t inner, double eps, int64_t threads) {
  const Blocks blocks("infer_blocks", "x", x, heads, width, inner, eps, threads);
  const Tables tables(blocks, cos, sin);
  const void* states[2] = {blocks.state("x", x), nullptr};
  if (injection.has_value()) states[1] = blocks.state("injection", injection.value());
  void* outputs[2] = {blocks.state("out", out), nullptr};
  const hrm_update update{0, injection.has_value() ? 1 : -1, -1, blocks.packed("packed", packed, layers), layers};
  if (blocks.empty()) return;
  kernels(blocks.code)
      .run_updates(blocks.shape, &update, 1, states, injection.has_value() ? 2 : 1, outputs, blocks.code, tables.cos,
                   tables.sin, nullptr, blocks.threads);
}

// The arguments of damped updates: weights [B] float32, seeds and steps [B] int64.
struct Damping : hrm_damping {
  Damping(const Blocks& blocks, TensorView weights_, double scale_, TensorView seeds_, TensorView steps_)
      : hrm_damping{} {
    const std::vector<int64_t> rows{blocks.shape.batch};
    weights = static_cast<const float*>(cpu_tensor(blocks.op, "weights", weights_, kFloat32, rows));
    scale = static_cast<float>(scale_);
    seeds = static_cast<const int64_t*>(cpu_tensor(blocks.op, "seeds", seeds_, kInt64, rows));
    steps = static_cast<const int64_t*>(cpu_tensor(blocks.op, "steps", steps_, kInt64, rows));
  }
};

void damped_infer_blocks(TensorView x, TensorView injection, TensorView packed, int64_t layers,
                         Optional<TensorView> cos, Optional<TensorView> sin, TensorView out, int64_t heads,
                         int64_t width, int64_t inner, double eps, TensorView weights, double scale, TensorView seeds,
                         TensorView steps, int64_t threads) {
  const Blocks blocks("damped_infer_blocks", "x", x, heads, width, inner, eps, threads);
  const Tables tables(blocks, cos, sin);
  const void* states[2] = {blocks.state("x", x), blocks.state("injection", injection)};
  void* outputs[2] = {blocks.state("out", out), nullptr};
  const Damping damping(blocks, weights, scale, seeds, steps);
  const hrm_update update{0, 1, -1, blocks.packed("packed", packed, layers), layers, &damping, 0};
  if (blocks.empty()) return;
  kernels(blocks.code)
      .run_updates(blocks.shape, &update, 1, states, 2, outputs, blocks.code, tables.cos, tables.sin, nullptr,
                   blocks.threads);
}

// The scales of pre-norm blocks, [3 layers, D] float32, padded to whole panels.
std::vector<float> padded_scales(const Blocks& blocks, const char* name, Optional<TensorView> scales, int64_t layers) {
  if (!scales.has_value()) return {};
  check_range(blocks.op, "layers", layers, 1024);
  if (blocks.shape.mixing) TVM_FFI_THROW(ValueError) << blocks.op << ": blocks that mix positions have no " << name;
  const int64_t dim = blocks.shape.dim, width = kernels(blocks.code).panel_width;
  const auto* from =
      static_cast<const float*>(cpu_tensor(blocks.op, name, scales.value(), kFloat32, {3 * layers, dim}));
  const int64_t padded = (dim + width - 1) / width * width;
  std::vector<float> result(static_cast<size_t>(3 * layers * padded));
  for (int64_t i = 0; i < 3 * layers * dim; ++i) result[static_cast<size_t>(i / dim * padded + i % dim)] = from[i];
  return result;
}

// The updates of H_cycles cycles in their order, H or L; without `complete` all but the last one of each state.
std::vector<hrm_update> updates_of_cycles(const hrm_update& H, const hrm_update& L, int64_t H_cycles, int64_t L_cycles,
                                          bool complete) {
  std::vector<hrm_update> updates;
  const auto add = [&](hrm_update update) {
    update.number = static_cast<int64_t>(updates.size());
    updates.push_back(update);
  };
  for (int64_t h = 0; h < H_cycles; ++h) {
    const bool last = h == H_cycles - 1 && !complete;
    for (int64_t l = 0; l < (last ? L_cycles - 1 : L_cycles); ++l) add(L);
    if (!last) add(H);
  }
  return updates;
}

// All updates of a segment, or with change None all but the last one of each state. moved [B] float32, or None: how far
// the states go; change [B, 2] float32. The damping has weights [B] float32, seeds and steps [B] int64; without weights
// there is none. scales_H, scales_L [3 layers, D] float32 (hrm_scales): of pre-norm blocks; None for post-norm.
void recurrent_segment(TensorView z_H, TensorView z_L, TensorView x, TensorView packed_H, int64_t H_layers,
                       TensorView packed_L, int64_t L_layers, Optional<TensorView> cos, Optional<TensorView> sin,
                       TensorView out_H, TensorView out_L, Optional<TensorView> change, Optional<TensorView> moved,
                       int64_t heads, int64_t width, int64_t inner, int64_t H_cycles, int64_t L_cycles, double eps,
                       Optional<TensorView> weights, double scale, Optional<TensorView> seeds,
                       Optional<TensorView> steps, Optional<TensorView> scales_H, Optional<TensorView> scales_L,
                       int64_t threads) {
  const Blocks blocks("recurrent_segment", "z_H", z_H, heads, width, inner, eps, threads);
  const Tables tables(blocks, cos, sin);
  const int64_t batch = blocks.shape.batch;
  const void* states[3] = {blocks.state("z_H", z_H), blocks.state("z_L", z_L), blocks.state("x", x)};
  void* outputs[3] = {blocks.state("out_H", out_H), blocks.state("out_L", out_L), nullptr};
  hrm_movement movement{nullptr, nullptr};
  if (change.has_value()) {
    movement.change = static_cast<float*>(cpu_tensor(blocks.op, "change", change.value(), kFloat32, {batch, 2}));
  }
  if (moved.has_value()) {
    movement.weights = static_cast<const float*>(cpu_tensor(blocks.op, "moved", moved.value(), kFloat32, {batch}));
  }
  if (weights.has_value() != seeds.has_value() || weights.has_value() != steps.has_value()) {
    TVM_FFI_THROW(ValueError) << blocks.op << ": one of weights, seeds and steps is None; pass all or none";
  }
  std::vector<Damping> damping;
  if (weights.has_value()) damping.emplace_back(blocks, weights.value(), scale, seeds.value(), steps.value());
  const hrm_damping* damped = damping.empty() ? nullptr : damping.data();
  const std::vector<float> of_H = padded_scales(blocks, "scales_H", scales_H, H_layers);
  const std::vector<float> of_L = padded_scales(blocks, "scales_L", scales_L, L_layers);
  if (of_H.empty() != of_L.empty()) {
    TVM_FFI_THROW(ValueError) << blocks.op << ": one of scales_H and scales_L is None; pass both or neither";
  }
  const bool is_pre_norm = !of_H.empty();
  const hrm_update H{0,        1,      -1, blocks.packed("packed_H", packed_H, H_layers),
                     H_layers, damped, 0,  is_pre_norm ? of_H.data() : nullptr};
  const hrm_update L{1,        0,      2, blocks.packed("packed_L", packed_L, L_layers),
                     L_layers, damped, 0, is_pre_norm ? of_L.data() : nullptr};
  check_range(blocks.op, "H_cycles", H_cycles);
  check_range(blocks.op, "L_cycles", L_cycles);
  check_range(blocks.op, "H_cycles * L_cycles", H_cycles * L_cycles);
  if (blocks.empty()) return;
  const std::vector<hrm_update> updates = updates_of_cycles(H, L, H_cycles, L_cycles, change.has_value());
  kernels(blocks.code)
      .run_updates(blocks.shape, updates.data(), static_cast<int64_t>(updates.size()), states, 3, outputs, blocks.code,
                   tables.cos, tables.sin, change.has_value() ? &movement : nullptr, blocks.threads);
}

void run_forward(const Blocks& blocks, TensorView x, Optional<TensorView> injection, TensorView packed, int64_t layers,
                 Optional<TensorView> cos, Optional<TensorView> sin, TensorView out, bool recompute, TensorView saved,
                 const hrm_damping* damping, int64_t cycles = 1) {
  const Tables tables(blocks, cos, sin);
  const void* from = blocks.state("x", x);
  const void* add = injection.has_value() ? blocks.state("injection", injection.value()) : nullptr;
  void* to = blocks.state("out", out);
  const float* weights = blocks.packed("packed", packed, layers);
  const int64_t size = kernels(blocks.code).saved_size(blocks.shape, layers, cycles, recompute);
  float* kept = blocks.floats("saved", saved, size);
  if (blocks.empty()) return;
  kernels(blocks.code)
      .blocks_forward(blocks.shape, weights, layers, cycles, from, add, to, blocks.code, tables.cos, tables.sin,
                      recompute, kept, damping, blocks.threads);
}

void blocks_forward(TensorView x, Optional<TensorView> injection, TensorView packed, int64_t layers,
                    Optional<TensorView> cos, Optional<TensorView> sin, TensorView out, bool recompute,
                    TensorView saved, int64_t heads, int64_t width, int64_t inner, double eps, int64_t threads) {
  const Blocks blocks("blocks_forward", "x", x, heads, width, inner, eps, threads);
  run_forward(blocks, x, injection, packed, layers, cos, sin, out, recompute, saved, nullptr);
}

void damped_blocks_forward(TensorView x, TensorView injection, TensorView packed, int64_t layers,
                           Optional<TensorView> cos, Optional<TensorView> sin, TensorView out, bool recompute,
                           TensorView saved, int64_t heads, int64_t width, int64_t inner, double eps,
                           TensorView weights, double scale, TensorView seeds, TensorView steps, int64_t threads) {
  const Blocks blocks("damped_blocks_forward", "x", x, heads, width, inner, eps, threads);
  const Damping damping(blocks, weights, scale, seeds, steps);
  run_forward(blocks, x, injection, packed, layers, cos, sin, out, recompute, saved, &damping);
}

// out [B, S, D] float32; seeds and steps [B] int64.
void noise(TensorView seeds, TensorView steps, int64_t stream, TensorView out, int64_t threads) {
  const char* op = "noise";
  if (out.ndim() != 3) {
    TVM_FFI_THROW(ValueError) << op << ": out has shape " << to_string(out.shape()) << "; pass [B, S, D]";
  }
  float* to = cpu_float32(op, "out", out);
  const std::vector<int64_t> rows{out.size(0)};
  const auto* keys = static_cast<const int64_t*>(cpu_tensor(op, "seeds", seeds, kInt64, rows));
  const auto* counts = static_cast<const int64_t*>(cpu_tensor(op, "steps", steps, kInt64, rows));
  const int team = positive_threads(op, threads);
  if (out.numel()) {
    kernels(HRM_FLOAT32)
        .noise(out.size(0), out.size(1), out.size(2), keys, counts, static_cast<uint32_t>(stream), to, team);
  }
}

// The gradients of the weights of each block, in the order of its weights; None for gradients not needed.
std::vector<hrm_weight_gradients> weight_gradients(const Blocks& blocks, const Array<Optional<Tensor>>& tensors,
                                                   int64_t layers) {
  const size_t each = blocks.shape.convolves ? 6 : 4;
  if (static_cast<int64_t>(tensors.size()) != static_cast<int64_t>(each) * layers) {
    TVM_FFI_THROW(ValueError) << blocks.op << ": dweights has " << tensors.size() << " tensors; pass "
                              << static_cast<int64_t>(each) * layers;
  }
  std::vector<hrm_weight_gradients> gradients;
  for (size_t i = 0; i < tensors.size(); i += each) {
    const auto gradient = [&](size_t which, std::vector<int64_t> sizes) -> void* {
      const Optional<Tensor> requested = tensors[i + which];
      if (!requested.has_value()) return nullptr;
      const Tensor tensor = requested.value();
      return cpu_tensor(blocks.op, "a weight's gradient", tensor, blocks.dtype, std::move(sizes));
    };
    gradients.push_back(each_weight<hrm_weight_gradients>(blocks.shape, gradient));
  }
  return gradients;
}

void run_backward(const Blocks& blocks, TensorView dout, TensorView packed, TensorView packed_backward, int64_t layers,
                  int64_t cycles, Optional<TensorView> cos, Optional<TensorView> sin, bool recompute, TensorView saved,
                  TensorView dx, Optional<TensorView> dinjection, const Array<Optional<Tensor>>& dweights) {
  const Tables tables(blocks, cos, sin);
  const void* from = blocks.state("dout", dout);
  void* to = blocks.state("dx", dx);
  void* injected = dinjection.has_value() ? blocks.state("dinjection", dinjection.value()) : nullptr;
  const float* weights = blocks.packed("packed", packed, layers);
  const float* backward = blocks.packed("packed_backward", packed_backward, layers);
  const int64_t size = kernels(blocks.code).saved_size(blocks.shape, layers, cycles, recompute);
  const float* kept = blocks.floats("saved", saved, size);
  const std::vector<hrm_weight_gradients> gradients = weight_gradients(blocks, dweights, layers);
  if (blocks.empty()) return;
  kernels(blocks.code)
      .blocks_backward(blocks.shape, weights, backward, layers, cycles, from, to, injected, gradients.data(),
                       blocks.code, tables.cos, tables.sin, recompute, kept, blocks.threads);
}

void blocks_backward(TensorView dout, TensorView packed, TensorView packed_backward, int64_t layers,
                     Optional<TensorView> cos, Optional<TensorView> sin, bool recompute, TensorView saved,
                     TensorView dx, Array<Optional<Tensor>> dweights, int64_t heads, int64_t width, int64_t inner,
                     double eps, int64_t threads) {
  const Blocks blocks("blocks_backward", "dout", dout, heads, width, inner, eps, threads);
  run_backward(blocks, dout, packed, packed_backward, layers, 1, cos, sin, recompute, saved, dx, std::nullopt,
               dweights);
}

// Blocks with ConvSwiGLU.
hrm_shape with_convolution(hrm_shape shape) {
  shape.convolves = true;
  return shape;
}

struct ConvBlocks : Blocks {
  int64_t cycles;

  ConvBlocks(const char* op_, const char* name, TensorView x, int64_t heads, int64_t width, int64_t inner,
             int64_t cycles_, double eps, int64_t threads_)
      : Blocks(op_, name, x, heads, width, inner, eps, threads_), cycles(cycles_) {
    check_range(op, "num_heads", heads);
    check_range(op, "cycles", cycles);
    shape = with_convolution(shape);
  }
};

// The number of floats of a packed block with ConvSwiGLU.
int64_t conv_packed_size(int64_t dim, int64_t heads, int64_t head_dim, int64_t inner, bool bfloat16) {
  check_range("conv_packed_size", "num_heads", heads);
  const hrm_shape shape = block_shape("conv_packed_size", 1, 1, dim, heads, head_dim, inner, 1);
  return kernels(bfloat16).packed_size(with_convolution(shape));
}

// weights: qkv, o, gate_up, down, conv and conv_bias of each block.
void pack_conv_blocks(Array<Tensor> weights, int64_t heads, bool backward, TensorView packed, int64_t threads) {
  const char* op = "pack_conv_blocks";
  if (weights.size() == 0 || weights.size() % 6) {
    TVM_FFI_THROW(ValueError) << op << ": weights has " << weights.size() << " tensors; pass six for each block";
  }
  check_defined(op, "weights", weights);
  check_range(op, "num_heads", heads);
  const int team = positive_threads(op, threads);
  const Tensor &qkv = weights[0], &down = weights[3];
  if (qkv.ndim() != 2 || down.ndim() != 2 || qkv.size(0) % (3 * heads)) {
    TVM_FFI_THROW(ValueError) << op << ": weights[0] has shape " << to_string(qkv.shape()) << ", weights[3] "
                              << to_string(down.shape()) << "; pass [3 H d, D] and [D, I]";
  }
  const int64_t wide = qkv.size(0) / 3;
  const hrm_shape shape = block_shape(op, 1, 1, down.size(0), heads, wide / heads, down.size(1), 1);
  pack_weights(op, weights, with_convolution(shape), backward, packed, team);
}

// Runs `cycles` times all blocks over the state + injection.
void conv_cycles(TensorView x, TensorView injection, TensorView packed, int64_t layers, Optional<TensorView> cos,
                 Optional<TensorView> sin, TensorView out, int64_t heads, int64_t width, int64_t inner, int64_t cycles,
                 double eps, int64_t threads) {
  const ConvBlocks blocks("conv_cycles", "x", x, heads, width, inner, cycles, eps, threads);
  const Tables tables(blocks, cos, sin);
  const void* states[2] = {blocks.state("x", x), blocks.state("injection", injection)};
  void* outputs[2] = {blocks.state("out", out), nullptr};
  const hrm_update update{0, 1, -1, blocks.packed("packed", packed, layers), layers};
  if (blocks.empty()) return;
  const std::vector<hrm_update> updates(static_cast<size_t>(cycles), update);
  kernels(blocks.code)
      .run_updates(blocks.shape, updates.data(), cycles, states, 2, outputs, blocks.code, tables.cos, tables.sin,
                   nullptr, blocks.threads);
}

void conv_cycles_forward(TensorView x, TensorView injection, TensorView packed, int64_t layers,
                         Optional<TensorView> cos, Optional<TensorView> sin, TensorView out, TensorView saved,
                         int64_t heads, int64_t width, int64_t inner, int64_t cycles, double eps, int64_t threads) {
  const ConvBlocks blocks("conv_cycles_forward", "x", x, heads, width, inner, cycles, eps, threads);
  run_forward(blocks, x, injection, packed, layers, cos, sin, out, false, saved, nullptr, cycles);
}

// dinjection: the gradient of the injection, or None with one cycle, where it is dx.
void conv_cycles_backward(TensorView dout, TensorView packed, TensorView packed_backward, int64_t layers,
                          Optional<TensorView> cos, Optional<TensorView> sin, TensorView saved, TensorView dx,
                          Optional<TensorView> dinjection, Array<Optional<Tensor>> dweights, int64_t heads,
                          int64_t width, int64_t inner, int64_t cycles, double eps, int64_t threads) {
  const ConvBlocks blocks("conv_cycles_backward", "dout", dout, heads, width, inner, cycles, eps, threads);
  run_backward(blocks, dout, packed, packed_backward, layers, cycles, cos, sin, false, saved, dx, dinjection, dweights);
}

Blocks attention_sizes(const char* op, TensorView qkv, int64_t heads, int64_t threads) {
  check_range(op, "num_heads", heads);
  if (qkv.ndim() != 3 || qkv.size(2) < 1 || qkv.size(2) % (3 * heads)) {
    TVM_FFI_THROW(ValueError) << op << ": qkv has shape " << to_string(qkv.shape())
                              << "; pass [B, S, 3 H d] with H = " << heads;
  }
  return Blocks(op, "qkv", qkv, heads, qkv.size(2) / (3 * heads), 1, 1, threads);
}

void rope_attention_forward(TensorView qkv, Optional<TensorView> cos, Optional<TensorView> sin, TensorView out,
                            TensorView lse, int64_t heads, int64_t threads) {
  const Blocks sizes = attention_sizes("rope_attention_forward", qkv, heads, threads);
  const Tables tables(sizes, cos, sin);
  const hrm_shape& s = sizes.shape;
  const void* from = cpu_elements(sizes.op, "qkv", qkv, sizes.dtype);
  void* to = cpu_tensor(sizes.op, "out", out, sizes.dtype, {s.batch, s.positions, s.dim / 3});
  float* sums = static_cast<float*>(cpu_tensor(sizes.op, "lse", lse, kFloat32, {s.batch, s.heads, s.positions}));
  if (sizes.empty()) return;
  kernels(sizes.code).rope_attention_forward(s, from, to, sums, sizes.code, tables.cos, tables.sin, sizes.threads);
}

void rope_attention_backward(TensorView dout, TensorView qkv, TensorView out, TensorView lse, Optional<TensorView> cos,
                             Optional<TensorView> sin, TensorView dqkv, int64_t heads, int64_t threads) {
  const Blocks sizes = attention_sizes("rope_attention_backward", qkv, heads, threads);
  const Tables tables(sizes, cos, sin);
  const hrm_shape& s = sizes.shape;
  const std::vector<int64_t> narrow{s.batch, s.positions, s.dim / 3};
  const void* gradient = cpu_tensor(sizes.op, "dout", dout, sizes.dtype, narrow);
  const void* from = cpu_elements(sizes.op, "qkv", qkv, sizes.dtype);
  const void* result = cpu_tensor(sizes.op, "out", out, sizes.dtype, narrow);
  const void* sums = cpu_tensor(sizes.op, "lse", lse, kFloat32, {s.batch, s.heads, s.positions});
  void* to = cpu_tensor(sizes.op, "dqkv", dqkv, sizes.dtype, {s.batch, s.positions, s.dim});
  if (sizes.empty()) return;
  kernels(sizes.code)
      .rope_attention_backward(s, gradient, from, result, static_cast<const float*>(sums), to, sizes.code, tables.cos,
                               tables.sin, sizes.threads);
}

// The dtype and sizes of a matrix x [rows, columns], and of its rows' other tensors.
struct Matrix {
  const char* op;
  DLDataType dtype;
  int code;
  int64_t rows, columns;
  Matrix(const char* op_, const char* name, TensorView x) : op(op_), dtype(x.dtype()), code(dtype_code(op_, name, x)) {
    if (x.ndim() != 2) {
      TVM_FFI_THROW(ValueError) << op << ": " << name << " has shape " << to_string(x.shape())
                                << "; pass [rows, columns]";
    }
    rows = x.size(0);
    columns = x.size(1);
  }
  void* get(const char* name, TensorView tensor, int64_t width) const {
    return cpu_tensor(op, name, tensor, dtype, {rows, width});
  }
  template <class T>
  T* column(const char* name, TensorView tensor, DLDataType type) const {
    return static_cast<T*>(cpu_tensor(op, name, tensor, type, {rows}));
  }
};

void add_rms_norm_forward(TensorView x, TensorView residual, double eps, TensorView out, TensorView rstd,
                          int64_t threads) {
  const Matrix m("add_rms_norm_forward", "x", x);
  const void *a = m.get("x", x, m.columns), *b = m.get("residual", residual, m.columns);
  void* to = m.get("out", out, m.columns);
  float* scale = m.column<float>("rstd", rstd, kFloat32);
  const int count = positive_threads(m.op, threads);
  if (m.rows) {
    kernels(m.code).add_rms_norm_forward(m.rows, m.columns, a, b, static_cast<float>(eps), to, scale, m.code, count);
  }
}

void add_rms_norm_backward(TensorView dout, TensorView x, TensorView residual, TensorView rstd, TensorView du,
                           int64_t threads) {
  const Matrix m("add_rms_norm_backward", "dout", dout);
  const void *dy = m.get("dout", dout, m.columns), *a = m.get("x", x, m.columns);
  const void* b = m.get("residual", residual, m.columns);
  const float* scale = m.column<float>("rstd", rstd, kFloat32);
  void* to = m.get("du", du, m.columns);
  const int count = positive_threads(m.op, threads);
  if (m.rows) kernels(m.code).add_rms_norm_backward(m.rows, m.columns, dy, a, b, scale, to, m.code, count);
}

void swiglu_forward(TensorView gate_up, TensorView out, int64_t threads) {
  const Matrix m("swiglu_forward", "out", out);
  const void* from = m.get("gate_up", gate_up, 2 * m.columns);
  void* to = m.get("out", out, m.columns);
  const int count = positive_threads(m.op, threads);
  if (m.rows) kernels(m.code).swiglu_forward(m.rows, m.columns, from, to, m.code, count);
}

void swiglu_backward(TensorView dout, TensorView gate_up, TensorView dgate_up, int64_t threads) {
  const Matrix m("swiglu_backward", "dout", dout);
  const void *dh = m.get("dout", dout, m.columns), *from = m.get("gate_up", gate_up, 2 * m.columns);
  void* to = m.get("dgate_up", dgate_up, 2 * m.columns);
  const int count = positive_threads(m.op, threads);
  if (m.rows) kernels(m.code).swiglu_backward(m.rows, m.columns, dh, from, to, m.code, count);
}

// The sizes of gate_up [B, S, 2 I], from those of a tensor [B, S, I].
struct Convolution {
  const char* op;
  DLDataType dtype;
  int code, threads;
  int64_t batch, positions, inner;

  Convolution(const char* op_, const char* name, TensorView x, int64_t threads_)
      : op(op_), dtype(x.dtype()), code(dtype_code(op_, name, x)), threads(positive_threads(op_, threads_)) {
    if (x.ndim() != 3) {
      TVM_FFI_THROW(ValueError) << op << ": " << name << " has shape " << to_string(x.shape()) << "; pass [B, S, I]";
    }
    batch = x.size(0);
    positions = x.size(1);
    inner = x.size(2);
    check_range(op, "I", inner);
  }
  bool empty() const { return batch * positions == 0; }
  void* inside(const char* name, TensorView tensor) const {
    return cpu_tensor(op, name, tensor, dtype, {batch, positions, inner});
  }
  void* gate_up(const char* name, TensorView tensor) const {
    return cpu_tensor(op, name, tensor, dtype, {batch, positions, 2 * inner});
  }
  void* weight(const char* name, TensorView tensor) const { return cpu_tensor(op, name, tensor, dtype, {inner, 2}); }
  void* bias(const char* name, TensorView tensor) const { return cpu_tensor(op, name, tensor, dtype, {inner}); }
};

void conv_swiglu_forward(TensorView gate_up, TensorView weight, TensorView bias, TensorView out, int64_t threads) {
  const Convolution c("conv_swiglu_forward", "out", out, threads);
  const void *from = c.gate_up("gate_up", gate_up), *taps = c.weight("weight", weight), *add = c.bias("bias", bias);
  void* to = c.inside("out", out);
  if (c.empty()) return;
  kernels(c.code).conv_swiglu_forward(c.batch, c.positions, c.inner, from, taps, add, to, c.code, c.threads);
}

// Without positions nothing is written.
void conv_swiglu_backward(TensorView dout, TensorView gate_up, TensorView weight, TensorView bias, TensorView dgate_up,
                          TensorView dweight, TensorView dbias, int64_t threads) {
  const Convolution c("conv_swiglu_backward", "dout", dout, threads);
  const void *dh = c.inside("dout", dout), *from = c.gate_up("gate_up", gate_up);
  const void *taps = c.weight("weight", weight), *add = c.bias("bias", bias);
  void *to = c.gate_up("dgate_up", dgate_up), *dtaps = c.weight("dweight", dweight), *dadd = c.bias("dbias", dbias);
  if (c.empty()) return;
  kernels(c.code).conv_swiglu_backward(c.batch, c.positions, c.inner, dh, from, taps, add, to, dtaps, dadd, c.code,
                                       c.threads);
}

// The sizes of x [B, S, D] and of the two matrices that mix its positions.
struct Mixing {
  const char* op;
  DLDataType dtype;
  int code, threads;
  int64_t batch, positions, dim, inner;

  Mixing(const char* op_, TensorView x, TensorView down, int64_t threads_)
      : op(op_), dtype(x.dtype()), code(dtype_code(op_, "x", x)), threads(positive_threads(op_, threads_)) {
    if (x.ndim() != 3 || down.ndim() != 2) {
      TVM_FFI_THROW(ValueError) << op << ": x has shape " << to_string(x.shape()) << " and down "
                                << to_string(down.shape()) << "; pass [B, S, D] and [S, I]";
    }
    batch = x.size(0);
    positions = x.size(1);
    dim = x.size(2);
    inner = down.size(1);
    check_range(op, "S", positions);
    check_range(op, "D", dim);
    check_range(op, "I", inner);
  }
  void* state(const char* name, TensorView tensor) const {
    return cpu_tensor(op, name, tensor, dtype, {batch, positions, dim});
  }
  void* gate_up(const char* name, TensorView tensor) const {
    return cpu_tensor(op, name, tensor, dtype, {2 * inner, positions});
  }
  void* down(const char* name, TensorView tensor) const {
    return cpu_tensor(op, name, tensor, dtype, {positions, inner});
  }
};

void token_mixing_forward(TensorView x, TensorView gate_up, TensorView down, double eps, TensorView out,
                          int64_t threads) {
  const Mixing m("token_mixing_forward", x, down, threads);
  const void *from = m.state("x", x), *first = m.gate_up("gate_up", gate_up), *second = m.down("down", down);
  void* to = m.state("out", out);
  if (!m.batch) return;
  kernels(m.code).token_mixing_forward(m.batch, m.positions, m.dim, m.inner, from, first, second,
                                       static_cast<float>(eps), to, m.code, m.threads);
}

void token_mixing_backward(TensorView dout, TensorView x, TensorView gate_up, TensorView down, double eps,
                           TensorView dx, TensorView dgate_up, TensorView ddown, int64_t threads) {
  const Mixing m("token_mixing_backward", x, down, threads);
  const void *dy = m.state("dout", dout), *from = m.state("x", x);
  const void *first = m.gate_up("gate_up", gate_up), *second = m.down("down", down);
  void *to = m.state("dx", dx), *dfirst = m.gate_up("dgate_up", dgate_up), *dsecond = m.down("ddown", ddown);
  if (!m.batch) return;
  kernels(m.code).token_mixing_backward(m.batch, m.positions, m.dim, m.inner, dy, from, first, second,
                                        static_cast<float>(eps), to, dfirst, dsecond, m.code, m.threads);
}

// The labels, each checked to be a column of the logits or ignore_index.
const int64_t* checked_labels(const Matrix& m, TensorView labels, int64_t ignore_index) {
  const int64_t* values = m.column<int64_t>("labels", labels, kInt64);
  if (m.rows && m.columns < 1) TVM_FFI_THROW(ValueError) << m.op << ": logits have no columns; pass [rows, V >= 1]";
  for (int64_t row = 0; row < m.rows; ++row) {
    if (values[row] != ignore_index && (values[row] < 0 || values[row] >= m.columns)) {
      TVM_FFI_THROW(IndexError) << "stablemax_cross_entropy: a label is " << values[row] << ", expected 0 to "
                                << m.columns - 1 << " or ignore_index (" << ignore_index << ")";
    }
  }
  return values;
}

void stablemax_forward(TensorView logits, TensorView labels, int64_t ignore_index, TensorView loss, TensorView others,
                       Optional<TensorView> argmax, int64_t threads) {
  const Matrix m("stablemax_forward", "logits", logits);
  const void* x = m.get("logits", logits, m.columns);
  const int64_t* y = checked_labels(m, labels, ignore_index);
  float* to = m.column<float>("loss", loss, kFloat32);
  double* sums = m.column<double>("others", others, kFloat64);
  int64_t* best = argmax.has_value() ? m.column<int64_t>("argmax", argmax.value(), kInt64) : nullptr;
  const int count = positive_threads(m.op, threads);
  if (m.rows) kernels(m.code).stablemax_forward(m.rows, m.columns, x, y, ignore_index, to, sums, best, m.code, count);
}

void stablemax_backward(TensorView dloss, TensorView logits, TensorView labels, int64_t ignore_index, TensorView others,
                        TensorView dlogits, int64_t threads) {
  const Matrix m("stablemax_backward", "logits", logits);
  const void* x = m.get("logits", logits, m.columns);
  const int64_t* y = checked_labels(m, labels, ignore_index);
  const float* d = m.column<float>("dloss", dloss, kFloat32);
  const double* sums = m.column<double>("others", others, kFloat64);
  void* to = m.get("dlogits", dlogits, m.columns);
  const int count = positive_threads(m.op, threads);
  if (m.rows) kernels(m.code).stablemax_backward(m.rows, m.columns, d, x, y, ignore_index, sums, to, m.code, count);
}

// copies: a bfloat16 tensor for each parameter, or none at all. decay1, decay2: a float64 number for each parameter.
void adam_atan2(Array<Tensor> params, Array<Tensor> grads, Array<Tensor> exp_avgs, Array<Tensor> exp_avg_sqs,
                Array<Tensor> copies, TensorView decay1, TensorView decay2, double lr, double beta1, double beta2,
                double weight_decay, int64_t threads) {
  const char* op = "adam_atan2";
  const size_t count = params.size();
  if (grads.size() != count || exp_avgs.size() != count || exp_avg_sqs.size() != count ||
      (copies.size() != count && copies.size() != 0)) {
    TVM_FFI_THROW(ValueError) << op << ": " << count << " params, " << grads.size() << " grads, " << exp_avgs.size()
                              << " exp_avgs, " << exp_avg_sqs.size() << " exp_avg_sqs, " << copies.size()
                              << " copies; pass equally many of each";
  }
  for (const Array<Tensor>& list : {params, grads, exp_avgs, exp_avg_sqs, copies})
    check_defined(op, "its tensors", list);
  std::vector<float*> p, m, v;
  std::vector<const float*> g;
  std::vector<void*> c;
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < count; ++i) {
    const Tensor param = params[i];
    p.push_back(cpu_float32(op, "a parameter", param));
    const auto like = [&](const char* name, const Tensor& tensor, DLDataType dtype) {
      void* data = cpu_elements(op, name, tensor, dtype);
      same_shape(op, name, tensor, "its parameter", param);
      return data;
    };
    g.push_back(static_cast<const float*>(like("a gradient", grads[i], kFloat32)));
    m.push_back(static_cast<float*>(like("an exp_avg", exp_avgs[i], kFloat32)));
    v.push_back(static_cast<float*>(like("an exp_avg_sq", exp_avg_sqs[i], kFloat32)));
    if (copies.size()) c.push_back(like("a copy", copies[i], kBFloat16));
    sizes.push_back(param.numel());
  }
  const std::vector<int64_t> each{static_cast<int64_t>(count)};
  const auto* d1 = static_cast<const double*>(cpu_tensor(op, "decay1", decay1, kFloat64, each));
  const auto* d2 = static_cast<const double*>(cpu_tensor(op, "decay2", decay2, kFloat64, each));
  const int team = positive_threads(op, threads);
  int64_t total = 0;
  for (const int64_t size : sizes) total += size;
  if (!total) return;
  kernels(HRM_FLOAT32)
      .adam_atan2(static_cast<int64_t>(count), p.data(), g.data(), m.data(), v.data(), c.empty() ? nullptr : c.data(),
                  sizes.data(), d1, d2, lr, beta1, beta2, weight_decay, team);
}

void sparse_sign_sgd(TensorView weights, TensorView ids, TensorView grads, double lr, double weight_decay) {
  const Matrix table("sparse_sign_sgd", "weights", weights), rows("sparse_sign_sgd", "grads", grads);
  float* w = cpu_float32(table.op, "weights", weights);
  const float* g =
      static_cast<const float*>(cpu_tensor(table.op, "grads", grads, kFloat32, {rows.rows, table.columns}));
  const int64_t* indices = rows.column<int64_t>("ids", ids, kInt64);
  const int64_t wrong = hrm_cpu_sparse_sign_sgd(w, table.rows, table.columns, indices, g, rows.rows, lr, weight_decay);
  if (wrong >= 0) {
    TVM_FFI_THROW(IndexError) << table.op << ": an identifier is " << indices[wrong] << ", expected 0 to "
                              << table.rows - 1 << "; nothing was changed";
  }
}

}  // namespace
}  // namespace hrm

TVM_FFI_DLL_EXPORT_TYPED_FUNC(interface, hrm::interface)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(use_instruction_set, hrm::use_instruction_set)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(instruction_set, hrm::instruction_set)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(bfloat16_instruction_set, hrm::bfloat16_instruction_set)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(amx, hrm::amx)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(axpy, hrm::axpy)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(packed_size, hrm::packed_size)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(mixing_packed_size, hrm::mixing_packed_size)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(pack_blocks, hrm::pack_blocks)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(checksum, hrm::checksum)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear_packed_size, hrm::linear_packed_size)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(pack_linear, hrm::pack_linear)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear, hrm::linear)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(linear_unpacked, hrm::linear_unpacked)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(infer_blocks, hrm::infer_blocks)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(damped_infer_blocks, hrm::damped_infer_blocks)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(recurrent_segment, hrm::recurrent_segment)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(damped_blocks_forward, hrm::damped_blocks_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(noise, hrm::noise)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(panel_width, hrm::panel_width)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(tile_rows, hrm::tile_rows)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(element_bytes, hrm::element_bytes)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(blocks_forward, hrm::blocks_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(blocks_backward, hrm::blocks_backward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(conv_packed_size, hrm::conv_packed_size)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(pack_conv_blocks, hrm::pack_conv_blocks)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(conv_cycles, hrm::conv_cycles)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(conv_cycles_forward, hrm::conv_cycles_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(conv_cycles_backward, hrm::conv_cycles_backward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rope_attention_forward, hrm::rope_attention_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rope_attention_backward, hrm::rope_attention_backward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(add_rms_norm_forward, hrm::add_rms_norm_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(add_rms_norm_backward, hrm::add_rms_norm_backward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(swiglu_forward, hrm::swiglu_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(swiglu_backward, hrm::swiglu_backward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(conv_swiglu_forward, hrm::conv_swiglu_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(conv_swiglu_backward, hrm::conv_swiglu_backward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(token_mixing_forward, hrm::token_mixing_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(token_mixing_backward, hrm::token_mixing_backward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(stablemax_forward, hrm::stablemax_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(stablemax_backward, hrm::stablemax_backward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(adam_atan2, hrm::adam_atan2)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(sparse_sign_sgd, hrm::sparse_sign_sgd)
