// Checks of arguments from Python before any pointer is dereferenced. TypeError and ValueError become Python's.
// Messages read "op: argument is this; pass that".
#pragma once

#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

namespace hrm {

using tvm::ffi::ShapeView;
using tvm::ffi::TensorView;

constexpr DLDataType kFloat32{kDLFloat, 32, 1}, kFloat64{kDLFloat, 64, 1}, kBFloat16{kDLBfloat, 16, 1};
constexpr DLDataType kFloat16{kDLFloat, 16, 1}, kInt32{kDLInt, 32, 1}, kInt64{kDLInt, 64, 1};

inline std::string to_string(ShapeView shape) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < shape.size(); ++i) text << (i ? ", " : "") << shape[i];
  text << ']';
  return text.str();
}

// The name of a dtype. Printing a DLDataType directly throws for dtypes without a name, such as complex ones.
inline std::string to_string(DLDataType dtype) {
  if (dtype.code <= kDLBfloat && dtype.code != kDLOpaqueHandle) {
    return std::string(tvm::ffi::DLDataTypeToString(dtype));
  }
  return "of DLPack type code " + std::to_string(dtype.code) + " with " + std::to_string(dtype.bits) + " bits";
}

inline void* aligned(const char* op, const char* name, void* data, uintptr_t bytes) {
  if (reinterpret_cast<uintptr_t>(data) % bytes) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " starts at an address that is not a multiple of " << bytes
                              << "; pass " << name << ".clone()";
  }
  return data;
}

// The elements of a contiguous CPU tensor of this dtype, aligned to their size. nullptr only for a tensor without
// elements.
inline void* cpu_elements(const char* op, const char* name, TensorView tensor, DLDataType dtype) {
  if (tensor.dtype() != dtype) {
    TVM_FFI_THROW(TypeError) << op << ": " << name << " is " << to_string(tensor.dtype()) << "; pass "
                             << to_string(dtype);
  }
  if (tensor.device().device_type != kDLCPU) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " is on DLPack device type " << tensor.device().device_type
                              << "; pass a CPU tensor (" << name << ".cpu())";
  }
  if (!tensor.IsContiguous()) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " of shape " << to_string(tensor.shape())
                              << " is not contiguous; pass " << name << ".contiguous()";
  }
  return aligned(op, name, static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset(), (dtype.bits + 7) / 8);
}

inline float* cpu_float32(const char* op, const char* name, TensorView tensor) {
  return static_cast<float*>(cpu_elements(op, name, tensor, kFloat32));
}

inline void has_shape(const char* op, const char* name, TensorView tensor, const std::vector<int64_t>& shape) {
  const ShapeView actual = tensor.shape();
  if (!std::equal(actual.begin(), actual.end(), shape.begin(), shape.end())) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " has shape " << to_string(actual) << "; pass "
                              << to_string(ShapeView(shape.data(), shape.size()));
  }
}

inline void same_shape(const char* op, const char* name, TensorView tensor, const char* other_name, TensorView other) {
  const ShapeView a = tensor.shape(), b = other.shape();
  if (!std::equal(a.begin(), a.end(), b.begin(), b.end())) {
    TVM_FFI_THROW(ValueError) << op << ": " << name << " has shape " << to_string(a) << " and " << other_name << ' '
                              << to_string(b) << "; pass equal shapes";
  }
}

}  // namespace hrm
