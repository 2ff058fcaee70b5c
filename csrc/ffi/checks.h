// Checks of what arrives from Python, before a pointer is followed. TypeError and ValueError here are Python's.
// Messages read "op: argument is this; pass that", as those of hrm_kernels/checks.py.
#pragma once

#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <sstream>
#include <string>

namespace hrm {

using tvm::ffi::ShapeView;
using tvm::ffi::TensorView;

constexpr DLDataType kFloat32{kDLFloat, 32, 1};

inline std::string to_string(ShapeView shape) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < shape.size(); ++i) text << (i ? ", " : "") << shape[i];
  text << ']';
  return text.str();
}

// The elements of a contiguous float32 CPU tensor. nullptr only for a tensor without elements.
inline float* cpu_float32(const char* op, const char* name, TensorView tensor) {
  if (tensor.dtype() != kFloat32) {
    TVM_FFI_THROW(TypeError) << op << ": " << name << " is " << tensor.dtype() << "; pass float32 (" << name
                             << ".float())";
  }
  if (tensor.device().device_type != kDLCPU) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " lies on DLPack device type " << tensor.device().device_type
                              << "; pass a CPU tensor (" << name << ".cpu())";
  }
  if (!tensor.IsContiguous()) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " of shape " << to_string(tensor.shape())
                              << " is not contiguous; pass " << name << ".contiguous()";
  }
  return reinterpret_cast<float*>(static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset());
}

inline void same_shape(const char* op, const char* name, TensorView tensor, const char* other_name,
                       TensorView other) {
  const ShapeView a = tensor.shape(), b = other.shape();
  if (!std::equal(a.begin(), a.end(), b.begin(), b.end())) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " has shape " << to_string(a) << " and " << other_name << ' '
                              << to_string(b) << "; pass equal shapes";
  }
}

}  // namespace hrm
