// What Python sees of csrc/cuda: each export checks its tensors and calls a launcher. Loaded by tvm_ffi.load_module.
#include <cuda_runtime.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/extra/c_env_api.h>

#include "cuda/kernels.h"
#include "ffi/checks.h"

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

// Makes the device of a call's tensors current, and the former one again afterwards.
class OnDevice {
 public:
  OnDevice(const char* op, const char* name, TensorView tensor) {
    if (tensor.device().device_type != kDevice) {
      TVM_FFI_THROW(ValueError) << op << ": " << name << " lies on DLPack device type " << tensor.device().device_type
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
  // The stream that is torch's current one on the device.
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
    TVM_FFI_THROW(ValueError) << op << ": " << name << " lies on DLPack device type " << tensor.device().device_type
                              << ", index " << tensor.device().device_id
                              << "; pass a tensor on the device of the first, index " << device.index();
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

constexpr const char* kCycles = "recurrent_cycles";

// Sizes and settings, from numbers that are checked to fit.
hrm_recurrent_cycles sizes(int64_t batch, int64_t positions, int64_t width, int64_t heads, int64_t head_dim,
                           int64_t inner, int64_t layers, int64_t more_layers) {
  constexpr int64_t kMost = 1 << 20;
  for (int64_t size : {batch, positions, width, heads, head_dim, inner, batch * positions}) {
    if (size < 1 || size > kMost) {
      TVM_FFI_THROW(ValueError) << kCycles << ": a size is " << size << "; pass sizes from 1 to " << kMost;
    }
  }
  hrm_recurrent_cycles problem{};
  problem.batch = static_cast<int32_t>(batch);
  problem.positions = static_cast<int32_t>(positions);
  problem.width = static_cast<int32_t>(width);
  problem.heads = static_cast<int32_t>(heads);
  problem.head_dim = static_cast<int32_t>(head_dim);
  problem.inner = static_cast<int32_t>(inner);
  problem.H_layers = static_cast<int32_t>(std::min<int64_t>(layers, HRM_MAX_LAYERS + 1));
  problem.L_layers = static_cast<int32_t>(std::min<int64_t>(more_layers, HRM_MAX_LAYERS + 1));
  return problem;
}

// Why device `index` cannot run blocks of these sizes, or "".
std::string recurrent_cycles_reason(int64_t index, int64_t positions, int64_t width, int64_t heads, int64_t head_dim,
                                    int64_t inner, int64_t layers) {
  const hrm_recurrent_cycles problem = sizes(1, positions, width, heads, head_dim, inner, layers, 0);
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(static_cast<int>(index));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const char* reason = hrm_cuda_recurrent_cycles_reason(&problem);
  static_cast<void>(cudaSetDevice(before));
  return reason ? reason : "";
}

int64_t recurrent_cycles_workspace(int64_t batch, int64_t positions, int64_t width, int64_t heads, int64_t head_dim,
                                   int64_t inner) {
  const hrm_recurrent_cycles problem = sizes(batch, positions, width, heads, head_dim, inner, 0, 0);
  return static_cast<int64_t>(hrm_cuda_recurrent_cycles_workspace(&problem));
}

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
  constexpr int64_t kMost = 1 << 20;
  if (H_cycles < 1 || L_cycles < 0 || H_cycles > kMost || L_cycles > kMost || (L_cycles == 0 && H_cycles != 2)) {
    TVM_FFI_THROW(ValueError) << kCycles << ": H_cycles is " << H_cycles << " and L_cycles " << L_cycles
                              << "; pass at least 1 of each, or 2 and 0 for a single update of z_H";
  }
  const bool runs_L = H_cycles * L_cycles > 1;
  for (const auto& [name, layers] : {std::pair{"H_layers", &H_layers}, std::pair{"L_layers", &L_layers}}) {
    const bool runs = layers == &H_layers ? H_cycles > 1 : runs_L;
    if (layers->size() % 4 || layers->size() > 4 * HRM_MAX_LAYERS || (runs && layers->empty())) {
      TVM_FFI_THROW(ValueError) << kCycles << ": " << name << " has " << layers->size()
                                << " tensors; pass four a block (qkv, o, gate_up, down), of 1 to " << HRM_MAX_LAYERS
                                << " blocks";
    }
    for (const Tensor& weight : *layers) {
      if (!weight.defined()) TVM_FFI_THROW(TypeError) << kCycles << ": " << name << " holds None; pass tensors alone";
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
  if (cos.has_value() != sin.has_value()) {
    TVM_FFI_THROW(TypeError) << kCycles << ": one of cos and sin is None; pass both tables, or None for both";
  }
  if (cos.has_value()) {
    problem.cos = static_cast<const float*>(elements(kCycles, "cos", *cos, kFloat32, device, 8));
    problem.sin = static_cast<const float*>(elements(kCycles, "sin", *sin, kFloat32, device, 8));
    same_shape(kCycles, "sin", *sin, "cos", *cos);
    const ShapeView shape = (*cos).shape();
    if (shape.size() != 2 || shape[0] < problem.positions || shape[1] != problem.head_dim) {
      TVM_FFI_THROW(ValueError) << kCycles << ": cos has shape " << to_string(shape) << "; pass [>= S, d] = [>= "
                                << problem.positions << ", " << problem.head_dim << ']';
    }
  }
  problem.workspace = elements(kCycles, "workspace", workspace, kUInt8, device, 16);
  const auto needed = static_cast<int64_t>(hrm_cuda_recurrent_cycles_workspace(&problem));
  if (workspace.numel() < needed) {
    TVM_FFI_THROW(ValueError) << kCycles << ": workspace has " << workspace.numel() << " bytes; pass "
                              << "recurrent_cycles_workspace(...) = " << needed;
  }
  check_launch(kCycles, hrm_cuda_recurrent_cycles(&problem, device.stream()));
}

}  // namespace
}  // namespace hrm

TVM_FFI_DLL_EXPORT_TYPED_FUNC(axpy, hrm::axpy)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(recurrent_cycles, hrm::recurrent_cycles)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(recurrent_cycles_reason, hrm::recurrent_cycles_reason)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(recurrent_cycles_workspace, hrm::recurrent_cycles_workspace)
