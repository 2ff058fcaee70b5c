// Selects the kernels of the best instruction set that this machine has.
#include <cstring>
#include <initializer_list>

#include "cpu/kernels.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hrm {

// HRM_SETS, by CMakeLists.txt: each instruction set of the library. Those that compute in bfloat16 have no functions of
// their own for the other ops.
#define HRM_SET(name)               \
  namespace name {                  \
  const hrm_cpu_kernels& table();   \
  void add(hrm_cpu_kernels& table); \
  }
HRM_SETS
#undef HRM_SET

namespace {

#if defined(__x86_64__)

// The bits of a register of cpuid leaf 7; GCC 12 and Clang do not know all names in __builtin_cpu_supports.
struct Leaf7 {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  explicit Leaf7(unsigned subleaf) { __get_cpuid_count(7, subleaf, &eax, &ebx, &ecx, &edx); }
};

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && has_avx2();
}
bool has_avx512_bf16() { return has_avx512() && (Leaf7(1).eax >> 5 & 1); }
bool has_amx() {  // amx-tile and amx-bf16
  const unsigned bits = Leaf7(0).edx;
  return has_avx512_bf16() && (bits >> 24 & 1) && (bits >> 22 & 1);
}

// Intel's cores execute vdpbf16ps at half the rate of float32 multiply-adds for twice the products, and need
// conversions besides; those of AMD (Zen 4 and 5) at the full rate.
bool has_fast_avx512_bf16() { return has_avx512_bf16() && __builtin_cpu_is("amd"); }

// Linux gives a process the memory for tile registers only on request.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool given = !syscall(SYS_arch_prctl, kRequestPermission, kTileData);
  return given;
#else
  return false;
#endif
}

#endif

struct Set {
  const char* name;
  bool available, automatic;           // automatic: best where available
  const hrm_cpu_kernels& (*table)();   // of float32
  void (*bfloat16)(hrm_cpu_kernels&);  // replaces functions for bfloat16; nullptr: float32 arithmetic
};

hrm_cpu_kernels made(const Set& set, int dtype) {
  hrm_cpu_kernels table = set.table();
  if (dtype == HRM_BFLOAT16 && set.bfloat16) set.bfloat16(table);
  table.name = set.name;
  return table;
}

}  // namespace
}  // namespace hrm

const char* hrm_cpu_amx() {
#if defined(HRM_AMX)
  __builtin_cpu_init();
  return !hrm::has_amx() ? "the processor has none" : hrm::may_use_tiles() ? "used" : "denied by the operating system";
#else
  return "not in this build";
#endif
}

const hrm_cpu_kernels* hrm_cpu(const char* name, int dtype) {
  using namespace hrm;
  constexpr int kMost = 8;
  static struct Tables {
    int count = 0;
    Set sets[kMost];
    hrm_cpu_kernels kernels[kMost][2];
    void add(const Set& set) {
      if (!set.available) return;
      sets[count] = set;
      for (int code : {HRM_FLOAT32, HRM_BFLOAT16}) kernels[count][code] = made(set, code);
      ++count;
    }
    Tables() {  // the best first
#if defined(__x86_64__)
      __builtin_cpu_init();
#if defined(HRM_AMX)
      add({"amx", has_amx() && may_use_tiles(), true, avx512::table, amx::add});
      add({"avx512_bf16", has_avx512_bf16(), has_fast_avx512_bf16(), avx512::table, avx512_bf16::add});
#endif
      add({"avx512", has_avx512(), true, avx512::table, nullptr});
      add({"avx2", has_avx2(), true, avx2::table, nullptr});
      const bool emulates = has_avx2();
      const auto base = avx2::table;
#else
      const bool emulates = true;
      const auto base = portable::table;
#endif
      add({"portable", true, true, portable::table, nullptr});
      add({"amx_emulated", emulates, false, base, amx_emulated::add});
      add({"avx512_bf16_emulated", emulates, false, base, avx512_bf16_emulated::add});
    }
  } tables;
  for (int i = 0; i < tables.count; ++i) {
    if (name ? !std::strcmp(name, tables.sets[i].name) : tables.sets[i].automatic) return &tables.kernels[i][dtype];
  }
  return nullptr;
}
