// The version of the exports. Raise it here and in hrm_kernels/native.py whenever an export changes: native.py refuses
// to load a library with another number (tests/hrm_kernels/test_native.py).
#pragma once

#include <cstdint>

namespace hrm {

constexpr int64_t kInterface = 6;

inline int64_t interface() { return kInterface; }

}  // namespace hrm
