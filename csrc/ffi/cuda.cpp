// The Python interface of csrc/cuda: each export checks its tensors and calls a launcher. tvm_ffi.load_module loads it.
#include <cuda_runtime.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/extra/c_env_api.h>

#include "cuda/kernels.h"
#include "ffi/checks.h"
#include "ffi/interface.h"

namespace hrm {
namespace {

using tvm::ffi::Array;
using tvm::ffi::Optional;
using tvm::ffi::Tensor;

#ifdef HRM_SIMT
constexpr DLDeviceType kDevice = kDLCPU;
#else
constexpr DLDeviceType kDevice = kDLCUDA;
#endif
constexpr DLDataType kUInt8{kDLUInt, 8, 1};

// Makes the device of a call's tensors current, and restores the previous device afterwards.
class OnDevice {
 public:
  OnDevice(const char* op, const char* name, TensorView tensor) {
    if (tensor.device().device_type != kDevice) {
      TVM_FFI_THROW(ValueError) << op << ": " << name << " is on DLPack device type " << tensor.device().device_type
                                << "; pass a CUDA tensor (" << name << ".cuda())";
    }
    device_ = tensor.device().device_id;
    check(op, cudaGetDevice(&before_));
    if (device_ != before_) check(op, cudaSetDevice(device_));
  }
  ~OnDevice() {
    if (device_ != before_) static_cast<void>(cudaSetDevice(before_));
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  int index() const { return device_; }
  // torch's current stream on the device.
  void* stream() const { return TVMFFIEnvGetStream(kDevice, device_); }

 private:
  static void check(const char* op, cudaError_t error) {
    if (error != cudaSuccess) TVM_FFI_THROW(RuntimeError) << op << ": " << cudaGetErrorString(error);
  }

  int device_ = 0, before_ = 0;
};

void check_launch(const char* op, const char* failure) {
  if (failure) TVM_FFI_THROW(RuntimeError) << op << ": " << failure;
}

// The elements of a contiguous tensor of `dtype` on the call's device, aligned to `alignment`.
template <typename View>
void* elements(const char* op, const std::string& name, const View& tensor, DLDataType dtype, const OnDevice& device,
               size_t alignment) {
  if (tensor.dtype() != dtype) {
    TVM_FFI_THROW(TypeError) << op << ": " << name << " is " << to_string(tensor.dtype()) << "; pass "
                             << to_string(dtype);
  }
  if (tensor.device().device_type != kDevice || tensor.device().device_id != device.index()) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " is on DLPack device type " << tensor.device().device_type
                              << ", index " << tensor.device().device_id << "; pass a tensor on device index "
                              << device.index();
  }
  if (!tensor.IsContiguous()) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " of shape " << to_string(tensor.shape())
                              << " is not contiguous; pass " << name << ".contiguous()";
  }
  auto* data = static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset();
  if (reinterpret_cast<uintptr_t>(data) % alignment) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " is not aligned to " << alignment << " bytes; pass " << name
                              << ".clone()";
  }
  return data;
}

template <typename View>
void check_sizes(const char* op, const std::string& name, const View& tensor, std::initializer_list<int64_t> expected,
                 const char* meaning) {
  const ShapeView shape = tensor.shape();
  if (!std::equal(shape.begin(), shape.end(), expected.begin(), expected.end())) {
    std::ostringstream wanted;
    for (int64_t size : expected) wanted << (wanted.tellp() ? ", " : "") << size;
    TVM_FFI_THROW(ValueError) << op << ": " << name << " has shape " << to_string(shape) << "; pass " << meaning
                              << " = [" << wanted.str() << ']';
  }
}

void axpy(float a, TensorView x, TensorView y) {
  const OnDevice device("axpy", "x", x);
  auto* from = static_cast<const float*>(elements("axpy", "x", x, kFloat32, device, 4));
  auto* to = static_cast<float*>(elements("axpy", "y", y, kFloat32, device, 4));
  same_shape("axpy", "x", x, "y", y);
  check_launch("axpy", hrm_cuda_axpy(a, from, to, x.numel(), device.stream()));
}

// Calls `reason` with device `index` current; returns its message, or "" for nullptr.
template <typename Reason>
std::string reason_on(int64_t index, Reason reason) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(static_cast<int>(index));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const char* message = reason();
  static_cast<void>(cudaSetDevice(before));
  return message ? message : "";
}

// Why device `index` cannot run any of the kernels, or "".
std::string device_reason(int64_t index) { return reason_on(index, hrm_cuda_device_reason); }

// The RoPE tables of an op. They stay nullptr if both are None.
struct Tables {
  const float *cos = nullptr, *sin = nullptr;

  Tables(const char* op, const Optional<TensorView>& cos_, const Optional<TensorView>& sin_, int64_t positions,
         int64_t head_dim, const OnDevice& device) {
    if (cos_.has_value() != sin_.has_value()) {
      TVM_FFI_THROW(TypeError) << op << ": one of cos and sin is None; pass both tables, or None for both";
    }
    if (!cos_.has_value()) return;
    cos = static_cast<const float*>(elements(op, "cos", *cos_, kFloat32, device, 8));
    sin = static_cast<const float*>(elements(op, "sin", *sin_, kFloat32, device, 8));
    same_shape(op, "sin", *sin_, "cos", *cos_);
    const ShapeView shape = (*cos_).shape();
    if (shape.size() != 2 || shape[0] < positions || shape[1] != head_dim) {
      TVM_FFI_THROW(ValueError) << op << ": cos has shape " << to_string(shape)
                                << "; pass [>= S, d] = [>= " << positions << ", " << head_dim << ']';
    }
  }
};

constexpr const char* kCycles = "recurrent_cycles";
constexpr int64_t kMaxSize = 1 << 20;

// The sizes of a call, checked to fit into int32.
hrm_recurrent_cycles sizes(int64_t batch, int64_t positions, int64_t width, int64_t heads, int64_t head_dim,
                           int64_t inner, int64_t H_layers, int64_t L_layers) {
  for (int64_t size : {batch, positions, width, heads, head_dim, inner, batch * positions}) {
    if (size < 1 || size > kMaxSize) {
      TVM_FFI_THROW(ValueError) << kCycles << ": a size is " << size << "; pass sizes from 1 to " << kMaxSize;
    }
  }
  hrm_recurrent_cycles problem{};
  problem.batch = static_cast<int32_t>(batch);
  problem.positions = static_cast<int32_t>(positions);
  problem.width = static_cast<int32_t>(width);
  problem.heads = static_cast<int32_t>(heads);
  problem.head_dim = static_cast<int32_t>(head_dim);
  problem.inner = static_cast<int32_t>(inner);
  problem.H_layers = static_cast<int32_t>(std::min<int64_t>(H_layers, HRM_MAX_LAYERS + 1));
  problem.L_layers = static_cast<int32_t>(std::min<int64_t>(L_layers, HRM_MAX_LAYERS + 1));
  return problem;
}

// Why device `index` cannot run blocks of these sizes, or "".
std::string recurrent_cycles_reason(int64_t index, int64_t positions, int64_t width, int64_t heads, int64_t head_dim,
                                    int64_t inner, int64_t layers) {
  const hrm_recurrent_cycles problem = sizes(1, positions, width, heads, head_dim, inner, layers, 0);
  return reason_on(index, [&] { return hrm_cuda_recurrent_cycles_reason(&problem); });
}

int64_t recurrent_cycles_workspace(int64_t batch, int64_t positions, int64_t width, int64_t heads, int64_t head_dim,
                                   int64_t inner) {
  const hrm_recurrent_cycles problem = sizes(batch, positions, width, heads, head_dim, inner, 0, 0);
  return static_cast<int64_t>(hrm_cuda_recurrent_cycles_workspace(&problem));
}

// Checks the weights of a module's blocks and stores their addresses in `blocks`.
void take_layers(const char* module, const Array<Tensor>& weights, const hrm_recurrent_cycles& sizes,
                 const OnDevice& device, hrm_block_weights* blocks) {
  static const char* const kNames[] = {"qkv", "o", "gate_up", "down"};
  const int64_t D = sizes.width, columns = sizes.heads * static_cast<int64_t>(sizes.head_dim), I = sizes.inner;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor weight = weights[i];
    const std::string name = std::string(module) + '[' + std::to_string(i / 4) + "]." + kNames[i % 4];
    const void* data = elements(kCycles, name, weight, kBFloat16, device, 16);
    hrm_block_weights& block = blocks[i / 4];
    switch (i % 4) {
      case 0: check_sizes(kCycles, name, weight, {3 * columns, D}, "[3 H d, D]"), block.qkv = data; break;
      case 1: check_sizes(kCycles, name, weight, {D, columns}, "[D, H d]"), block.o = data; break;
      case 2: check_sizes(kCycles, name, weight, {2 * I, D}, "[2 I, D]"), block.gate_up = data; break;
      default: check_sizes(kCycles, name, weight, {D, I}, "[D, I]"), block.down = data;
    }
  }
}

void recurrent_cycles(TensorView z_H, TensorView z_L, TensorView x, Array<Tensor> H_layers, Array<Tensor> L_layers,
                      Optional<TensorView> cos, Optional<TensorView> sin, int64_t num_heads, int64_t H_cycles,
                      int64_t L_cycles, double eps, TensorView new_z_H, TensorView new_z_L, TensorView workspace) {
  const OnDevice device(kCycles, "z_H", z_H);
  if (z_H.ndim() != 3) {
    TVM_FFI_THROW(ValueError) << kCycles << ": z_H has shape " << to_string(z_H.shape()) << "; pass [B, S, D]";
  }
  if (H_cycles < 1 || L_cycles < 0 || H_cycles > kMaxSize || L_cycles > kMaxSize || (L_cycles == 0 && H_cycles != 2)) {
    TVM_FFI_THROW(ValueError) << kCycles << ": H_cycles is " << H_cycles << " and L_cycles " << L_cycles
                              << "; pass at least 1 of each, or 2 and 0 for a single update of z_H";
  }
  const bool runs_L = H_cycles * L_cycles > 1;
  for (const auto& [name, layers] : {std::pair{"H_layers", &H_layers}, std::pair{"L_layers", &L_layers}}) {
    const bool runs = layers == &H_layers ? H_cycles > 1 : runs_L;
    if (layers->size() % 4 || layers->size() > 4 * HRM_MAX_LAYERS || (runs && layers->empty())) {
      TVM_FFI_THROW(ValueError) << kCycles << ": " << name << " has " << layers->size()
                                << " tensors; pass four for each block (qkv, o, gate_up, down), for 1 to "
                                << HRM_MAX_LAYERS << " blocks";
    }
    for (const Tensor& weight : *layers) {
      if (!weight.defined()) TVM_FFI_THROW(TypeError) << kCycles << ": " << name << " contains None; pass only tensors";
    }
  }
  const Array<Tensor>& any = H_layers.empty() ? L_layers : H_layers;
  if (any.empty()) return;  // nothing to update
  const Tensor qkv = any[0], down = any[3];
  if (qkv.ndim() != 2 || down.ndim() != 2 || num_heads < 1 || qkv.shape()[0] % 3 || qkv.shape()[0] / 3 % num_heads) {
    TVM_FFI_THROW(ValueError) << kCycles << ": the first block has qkv " << to_string(qkv.shape()) << " and down "
                              << to_string(down.shape()) << " with num_heads " << num_heads
                              << "; pass [3 H d, D] and [D, I] with H = num_heads";
  }
  hrm_recurrent_cycles problem =
      sizes(z_H.shape()[0], z_H.shape()[1], z_H.shape()[2], num_heads, qkv.shape()[0] / 3 / num_heads, down.shape()[1],
            static_cast<int64_t>(H_layers.size() / 4), static_cast<int64_t>(L_layers.size() / 4));
  problem.H_cycles = static_cast<int32_t>(H_cycles);
  problem.L_cycles = static_cast<int32_t>(L_cycles);
  problem.eps = static_cast<float>(eps);
  check_launch(kCycles, hrm_cuda_recurrent_cycles_reason(&problem));

  problem.z_H = elements(kCycles, "z_H", z_H, kBFloat16, device, 16);
  problem.z_L = elements(kCycles, "z_L", z_L, kBFloat16, device, 16);
  problem.x = elements(kCycles, "x", x, kBFloat16, device, 16);
  problem.new_z_H = elements(kCycles, "new_z_H", new_z_H, kBFloat16, device, 16);
  problem.new_z_L = elements(kCycles, "new_z_L", new_z_L, kBFloat16, device, 16);
  same_shape(kCycles, "z_L", z_L, "z_H", z_H);
  same_shape(kCycles, "x", x, "z_H", z_H);
  same_shape(kCycles, "new_z_H", new_z_H, "z_H", z_H);
  same_shape(kCycles, "new_z_L", new_z_L, "z_H", z_H);
  take_layers("H_layers", H_layers, problem, device, problem.H);
  take_layers("L_layers", L_layers, problem, device, problem.L);
  const Tables tables(kCycles, cos, sin, problem.positions, problem.head_dim, device);
  problem.cos = tables.cos;
  problem.sin = tables.sin;
  problem.workspace = elements(kCycles, "workspace", workspace, kUInt8, device, 16);
  const auto needed = static_cast<int64_t>(hrm_cuda_recurrent_cycles_workspace(&problem));
  if (workspace.numel() < needed) {
    TVM_FFI_THROW(ValueError) << kCycles << ": workspace has " << workspace.numel() << " bytes; pass "
                              << "recurrent_cycles_workspace(...) = " << needed;
  }
  check_launch(kCycles, hrm_cuda_recurrent_cycles(&problem, device.stream()));
}

// The code of a dtype in csrc/cuda/kernels.h.
hrm_dtype dtype_code(const char* op, const std::string& name, DLDataType dtype) {
  if (dtype == kFloat32) return HRM_FLOAT32;
  if (dtype == kBFloat16) return HRM_BFLOAT16;
  if (dtype != kFloat16) {
    TVM_FFI_THROW(TypeError) << op << ": " << name << " is " << to_string(dtype)
                             << "; pass float32, bfloat16 or float16";
  }
  return HRM_FLOAT16;
}

// Whether an integer tensor is int64 rather than int32.
bool is_wide(const char* op, const char* name, TensorView tensor) {
  if (tensor.dtype() != kInt64 && tensor.dtype() != kInt32) {
    TVM_FFI_THROW(TypeError) << op << ": " << name << " is " << to_string(tensor.dtype()) << "; pass int32 or int64";
  }
  return tensor.dtype() == kInt64;
}

size_t bytes_of(DLDataType dtype) { return dtype.bits / 8; }

// A float32 scalar on the call's device, or nullptr.
const float* device_number(const char* op, const char* name, const Optional<TensorView>& number,
                           const OnDevice& device) {
  if (!number.has_value()) return nullptr;
  const auto* value = static_cast<const float*>(elements(op, name, *number, kFloat32, device, 4));
  if ((*number).numel() != 1) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " has shape " << to_string((*number).shape())
                              << "; pass a scalar";
  }
  return value;
}

// counts: for each parameter a float32 scalar, the number of previous steps; this call adds 1. With `arrived`, an int32
// zero, the counts are on the device, and the learning rate may be too; without it they are on the CPU.
void adam_atan2(Array<Tensor> params, Array<Tensor> grads, Array<Tensor> exp_avgs, Array<Tensor> exp_avg_sqs,
                Array<Tensor> copies, Array<Tensor> counts, double lr, Optional<TensorView> device_lr, double beta1,
                double beta2, double weight_decay, Optional<TensorView> arrived) {
  constexpr const char* kOp = "adam_atan2";
  for (const auto& [name, list] :
       {std::pair{"grads", &grads}, std::pair{"exp_avgs", &exp_avgs}, std::pair{"exp_avg_sqs", &exp_avg_sqs},
        std::pair{"copies", &copies}, std::pair{"counts", &counts}, std::pair{"params", &params}}) {
    if (list->size() != params.size() && (list != &copies || !copies.empty())) {
      TVM_FFI_THROW(ValueError) << kOp << ": " << name << " has " << list->size() << " tensors and params "
                                << params.size() << "; pass equally many of each";
    }
    for (const Tensor& tensor : *list) {
      if (!tensor.defined()) TVM_FFI_THROW(TypeError) << kOp << ": " << name << " contains None; pass only tensors";
    }
  }
  if (params.empty()) return;
  const Tensor first = params[0];
  const OnDevice device(kOp, "params[0]", first);
  hrm_adam_atan2 problem{};
  problem.dtype = dtype_code(kOp, "params[0]", first.dtype());
  problem.copy_dtype = copies.empty() ? -1 : static_cast<int32_t>(dtype_code(kOp, "copies[0]", copies[0].dtype()));
  std::vector<hrm_adam_parameter> parameters;
  for (size_t i = 0; i < params.size(); ++i) {
    const Tensor param = params[i];
    const auto take = [&](const char* name, const Tensor& tensor, DLDataType dtype) {
      const std::string indexed = std::string(name) + '[' + std::to_string(i) + ']';
      void* data = elements(kOp, indexed, tensor, dtype, device, bytes_of(dtype));
      same_shape(kOp, indexed.c_str(), tensor, "its parameter", param);
      return data;
    };
    hrm_adam_parameter parameter{};
    parameter.p = take("params", param, first.dtype());
    parameter.g = take("grads", grads[i], first.dtype());
    parameter.m = take("exp_avgs", exp_avgs[i], first.dtype());
    parameter.v = take("exp_avg_sqs", exp_avg_sqs[i], first.dtype());
    if (!copies.empty()) parameter.copy = take("copies", copies[i], copies[0].dtype());
    parameter.numel = param.numel();
    const Tensor count = counts[i];
    const std::string name = "counts[" + std::to_string(i) + ']';
    parameter.count = static_cast<float*>(arrived.has_value() ? elements(kOp, name, count, kFloat32, device, 4)
                                                              : cpu_elements(kOp, name.c_str(), count, kFloat32));
    if (count.numel() != 1) {
      TVM_FFI_THROW(ValueError) << kOp << ": " << name << " has shape " << to_string(count.shape())
                                << "; pass a scalar";
    }
    parameters.push_back(parameter);
  }
  for (const auto& [name, beta] : {std::pair{"beta1", beta1}, std::pair{"beta2", beta2}}) {
    if (!(beta >= 0 && beta < 1)) {
      TVM_FFI_THROW(ValueError) << kOp << ": " << name << " is " << beta << "; pass a number from 0 to below 1";
    }
  }
  problem.parameters = parameters.data();
  problem.count = static_cast<int64_t>(parameters.size());
  problem.lr = lr;
  problem.beta1 = beta1;
  problem.beta2 = beta2;
  problem.weight_decay = weight_decay;
  problem.device_lr = device_number(kOp, "lr", device_lr, device);
  if (arrived.has_value()) {
    problem.arrived = static_cast<unsigned*>(elements(kOp, "arrived", *arrived, kInt32, device, 4));
    if ((*arrived).numel() != 1) {
      TVM_FFI_THROW(ValueError) << kOp << ": arrived has shape " << to_string((*arrived).shape()) << "; pass one zero";
    }
  } else if (problem.device_lr) {
    TVM_FFI_THROW(TypeError) << kOp << ": lr is on the device, but the counts are on the CPU; pass a number";
  }
  check_launch(kOp, hrm_cuda_adam_atan2(&problem, device.stream()));
  if (!problem.arrived) {
    for (const hrm_adam_parameter& parameter : parameters) *parameter.count += 1;
  }
}

// The kernel skips ids that are not rows of the table.
void sparse_sign_sgd(TensorView weights, TensorView ids, TensorView grads, double lr, Optional<TensorView> device_lr,
                     double weight_decay) {
  constexpr const char* kOp = "sparse_sign_sgd";
  const OnDevice device(kOp, "weights", weights);
  hrm_sparse_sign_sgd problem{};
  problem.dtype = dtype_code(kOp, "weights", weights.dtype());
  const size_t bytes = bytes_of(weights.dtype());
  problem.weights = elements(kOp, "weights", weights, weights.dtype(), device, bytes);
  problem.grads = elements(kOp, "grads", grads, weights.dtype(), device, bytes);
  problem.wide_ids = is_wide(kOp, "ids", ids);
  problem.ids = elements(kOp, "ids", ids, ids.dtype(), device, bytes_of(ids.dtype()));
  if (weights.ndim() != 2) {
    TVM_FFI_THROW(ValueError) << kOp << ": weights has shape " << to_string(weights.shape()) << "; pass [E, D]";
  }
  problem.table_rows = weights.shape()[0];
  problem.columns = weights.shape()[1];
  problem.rows = ids.numel();
  check_sizes(kOp, "ids", ids, {problem.rows}, "[N]");
  check_sizes(kOp, "grads", grads, {problem.rows, problem.columns}, "[N, D]");
  problem.device_lr = device_number(kOp, "lr", device_lr, device);
  problem.lr = static_cast<float>(lr);
  problem.keep = static_cast<float>(1 - lr * weight_decay);
  problem.weight_decay = static_cast<float>(weight_decay);
  check_launch(kOp, hrm_cuda_sparse_sign_sgd(&problem, device.stream()));
}

constexpr const char* kStablemax = "stablemax_cross_entropy";

// What both passes have: logits [..., V] and labels, total and others [...].
hrm_stablemax take_tokens(TensorView logits, TensorView labels, int64_t ignore_index, TensorView total,
                          TensorView others, const OnDevice& device) {
  hrm_stablemax problem{};
  problem.dtype = dtype_code(kStablemax, "logits", logits.dtype());
  problem.logits = elements(kStablemax, "logits", logits, logits.dtype(), device, bytes_of(logits.dtype()));
  const ShapeView shape = logits.shape();
  if (shape.empty() || shape.back() < 1 || shape.back() > INT32_MAX) {
    TVM_FFI_THROW(ValueError) << kStablemax << ": logits has shape " << to_string(shape)
                              << "; pass [..., V] with V >= 1";
  }
  problem.columns = static_cast<int32_t>(shape.back());
  problem.rows = logits.numel() / problem.columns;
  problem.wide_labels = is_wide(kStablemax, "labels", labels);
  problem.labels = elements(kStablemax, "labels", labels, labels.dtype(), device, bytes_of(labels.dtype()));
  if (!std::equal(labels.shape().begin(), labels.shape().end(), shape.begin(), shape.end() - 1)) {
    TVM_FFI_THROW(ValueError) << kStablemax << ": labels has shape " << to_string(labels.shape()) << " and logits "
                              << to_string(shape) << "; pass labels of logits' shape without V";
  }
  problem.ignore_index = ignore_index;
  const auto floats = [&](const char* name, TensorView tensor) {
    void* data = elements(kStablemax, name, tensor, kFloat32, device, 4);
    same_shape(kStablemax, name, tensor, "labels", labels);
    return static_cast<float*>(data);
  };
  problem.total = floats("total", total);
  problem.others = floats("others", others);
  return problem;
}

void stablemax_forward(TensorView logits, TensorView labels, int64_t ignore_index, TensorView loss, TensorView total,
                       TensorView others, TensorView argmax) {
  const OnDevice device(kStablemax, "logits", logits);
  hrm_stablemax problem = take_tokens(logits, labels, ignore_index, total, others, device);
  problem.loss = static_cast<float*>(elements(kStablemax, "loss", loss, kFloat32, device, 4));
  same_shape(kStablemax, "loss", loss, "labels", labels);
  problem.argmax = static_cast<int64_t*>(elements(kStablemax, "argmax", argmax, kInt64, device, 8));
  same_shape(kStablemax, "argmax", argmax, "labels", labels);
  check_launch(kStablemax, hrm_cuda_stablemax_forward(&problem, device.stream()));
}

void stablemax_backward(TensorView dloss, TensorView logits, TensorView labels, TensorView total, TensorView others,
                        int64_t ignore_index, TensorView dlogits) {
  const OnDevice device(kStablemax, "logits", logits);
  hrm_stablemax problem = take_tokens(logits, labels, ignore_index, total, others, device);
  problem.dloss = static_cast<const float*>(elements(kStablemax, "dloss", dloss, kFloat32, device, 4));
  same_shape(kStablemax, "dloss", dloss, "labels", labels);
  problem.dlogits = elements(kStablemax, "dlogits", dlogits, logits.dtype(), device, bytes_of(logits.dtype()));
  same_shape(kStablemax, "dlogits", dlogits, "logits", logits);
  check_launch(kStablemax, hrm_cuda_stablemax_backward(&problem, device.stream()));
}

constexpr const char* kAttention = "rope_attention";

// The checked sizes, dtype, qkv and tables of a call of the short attention.
hrm_rope_attention attention(TensorView qkv, const Optional<TensorView>& cos, const Optional<TensorView>& sin,
                             int64_t num_heads, const OnDevice& device) {
  if (qkv.ndim() != 3 || num_heads < 1 || num_heads > INT32_MAX || qkv.shape()[2] % (3 * num_heads)) {
    TVM_FFI_THROW(ValueError) << kAttention << ": qkv has shape " << to_string(qkv.shape()) << " with num_heads "
                              << num_heads << "; pass [B, S, 3 H d] with H = num_heads";
  }
  const int64_t batch = qkv.shape()[0], positions = qkv.shape()[1], head_dim = qkv.shape()[2] / (3 * num_heads);
  if (batch < 1 || batch > INT32_MAX / num_heads || positions < 1 || positions > HRM_SHORT_POSITIONS) {
    TVM_FFI_THROW(ValueError) << kAttention << ": qkv has B = " << batch << " and S = " << positions
                              << " with num_heads " << num_heads
                              << "; pass 1 to 128 positions, and B H from 1 to 2^31 - 1";
  }
  if (head_dim != 32 && head_dim != 64 && head_dim != 128) {
    TVM_FFI_THROW(ValueError) << kAttention << ": d = " << head_dim << "; pass heads of 32, 64 or 128";
  }
  hrm_rope_attention problem{};
  problem.dtype = dtype_code(kAttention, "qkv", qkv.dtype());
  if (problem.dtype == HRM_FLOAT32) {
    TVM_FFI_THROW(TypeError) << kAttention << ": qkv is float32; pass bfloat16 or float16";
  }
  problem.batch = static_cast<int32_t>(batch);
  problem.positions = static_cast<int32_t>(positions);
  problem.heads = static_cast<int32_t>(num_heads);
  problem.head_dim = static_cast<int32_t>(head_dim);
  problem.qkv = elements(kAttention, "qkv", qkv, qkv.dtype(), device, 16);
  const Tables tables(kAttention, cos, sin, positions, head_dim, device);
  problem.cos = tables.cos;
  problem.sin = tables.sin;
  return problem;
}

void rope_attention_forward(TensorView qkv, Optional<TensorView> cos, Optional<TensorView> sin, int64_t num_heads,
                            TensorView out, Optional<TensorView> lse) {
  const OnDevice device(kAttention, "qkv", qkv);
  hrm_rope_attention problem = attention(qkv, cos, sin, num_heads, device);
  problem.out = elements(kAttention, "out", out, qkv.dtype(), device, 16);
  check_sizes(kAttention, "out", out, {problem.batch, problem.positions, qkv.shape()[2] / 3}, "[B, S, H d]");
  if (lse.has_value()) {
    problem.lse = static_cast<float*>(elements(kAttention, "lse", *lse, kFloat32, device, 4));
    check_sizes(kAttention, "lse", *lse, {problem.batch, problem.heads, problem.positions}, "[B, H, S]");
  }
  check_launch(kAttention, hrm_cuda_rope_attention_forward(&problem, device.stream()));
}

void rope_attention_backward(TensorView dout, TensorView qkv, TensorView lse, Optional<TensorView> cos,
                             Optional<TensorView> sin, int64_t num_heads, TensorView dqkv) {
  const OnDevice device(kAttention, "qkv", qkv);
  hrm_rope_attention problem = attention(qkv, cos, sin, num_heads, device);
  problem.dout = elements(kAttention, "dout", dout, qkv.dtype(), device, 16);
  check_sizes(kAttention, "dout", dout, {problem.batch, problem.positions, qkv.shape()[2] / 3}, "[B, S, H d]");
  problem.lse = static_cast<float*>(elements(kAttention, "lse", lse, kFloat32, device, 4));
  check_sizes(kAttention, "lse", lse, {problem.batch, problem.heads, problem.positions}, "[B, H, S]");
  problem.dqkv = elements(kAttention, "dqkv", dqkv, qkv.dtype(), device, 16);
  same_shape(kAttention, "dqkv", dqkv, "qkv", qkv);
  check_launch(kAttention, hrm_cuda_rope_attention_backward(&problem, device.stream()));
}

}  // namespace
}  // namespace hrm

TVM_FFI_DLL_EXPORT_TYPED_FUNC(interface, hrm::interface)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(adam_atan2, hrm::adam_atan2)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(sparse_sign_sgd, hrm::sparse_sign_sgd)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(stablemax_forward, hrm::stablemax_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(stablemax_backward, hrm::stablemax_backward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(device_reason, hrm::device_reason)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(axpy, hrm::axpy)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(recurrent_cycles, hrm::recurrent_cycles)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(recurrent_cycles_reason, hrm::recurrent_cycles_reason)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(recurrent_cycles_workspace, hrm::recurrent_cycles_workspace)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rope_attention_forward, hrm::rope_attention_forward)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rope_attention_backward, hrm::rope_attention_backward)
