// Which Python a library is for. It goes up with every change of an export, here and in hrm_kernels/native.py, so that
// a library of another build is refused when it is loaded (tests/hrm_kernels/test_native.py).
#pragma once

#include <cstdint>

namespace hrm {

constexpr int64_t kInterface = 2;

inline int64_t interface() { return kInterface; }

}  // namespace hrm
