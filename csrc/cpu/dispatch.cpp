// Selects the kernels of the best instruction set that this machine has.
#include <cstring>

#include "cpu/kernels.h"

namespace hrm {
#if defined(__x86_64__)
namespace avx512 {
const hrm_cpu_kernels& table();
}
namespace avx2 {
const hrm_cpu_kernels& table();
}
#endif
namespace portable {
const hrm_cpu_kernels& table();
}
}  // namespace hrm

const hrm_cpu_kernels* hrm_cpu(const char* name, int) {
  const auto wanted = [name](const char* isa) { return !name || !std::strcmp(name, isa); };
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (wanted("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return &hrm::avx512::table();
  }
  if (wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &hrm::avx2::table();
#endif
  return wanted("portable") ? &hrm::portable::table() : nullptr;
}
