// What Python sees of csrc: each export checks its tensors and calls a kernel. Loaded by tvm_ffi.load_module.
#include "cpu/kernels.h"
#include "ffi/checks.h"

namespace hrm {
namespace {

void axpy(float a, TensorView x, TensorView y) {
  const float* from = cpu_float32("axpy", "x", x);
  float* to = cpu_float32("axpy", "y", y);
  same_shape("axpy", "x", x, "y", y);
  hrm_cpu_axpy(a, from, to, x.numel());
}

}  // namespace
}  // namespace hrm

TVM_FFI_DLL_EXPORT_TYPED_FUNC(axpy, hrm::axpy)
