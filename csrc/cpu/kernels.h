// The CPU kernels. C linkage and plain pointers: callable from any language, and from tests without Python.
// Callers have checked what the pointers point to; csrc/ffi does it for Python.
#pragma once

#include <cstdint>

extern "C" {

// y[i] += a * x[i] for i in [0, n). x may be y.
// The self-test of the road from Python to native code: hrm_kernels/native.py compares its result.
void hrm_cpu_axpy(float a, const float* x, float* y, int64_t n);

}  // extern "C"
