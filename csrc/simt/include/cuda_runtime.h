// The parts of CUDA's language and runtime that csrc/cuda uses, for a C++ compiler; replaces the toolkit's header.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "simt/race.h"
#include "simt/simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __restrict__

namespace simt {
// Reads the running thread's Index. Variables rather than macros, because struct members have the same names.
template <Index Thread::* kIndex>
struct BuiltIn {
  template <unsigned Index::* kCoordinate>
  struct Coordinate {
    operator unsigned() const { return self().*kIndex.*kCoordinate; }
  };
  Coordinate<&Index::x> x;
  Coordinate<&Index::y> y;
  Coordinate<&Index::z> z;
};
}  // namespace simt

constexpr simt::BuiltIn<&simt::Thread::thread_index> threadIdx{};
constexpr simt::BuiltIn<&simt::Thread::block_index> blockIdx{};
constexpr simt::BuiltIn<&simt::Thread::block_size> blockDim{};
constexpr simt::BuiltIn<&simt::Thread::grid_size> gridDim{};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::block_barrier(file, line);
}

namespace simt {

// Calls `choose(lanes, lane)` with the values of all lanes and returns its result for this lane.
template <typename T, typename Choose>
T exchange(const char* what, unsigned mask, T value, unsigned parameter, Choose) {
  if (mask != 0xffffffffu) fail("%s of a part of the warp (mask %#x): not emulated", what, mask);
  struct Argument {
    T value;
    unsigned parameter;
    T result;
  } argument{value, parameter, T()};
  warp_collective(what, &argument, [](void* const* lanes) {
    T values[32];
    for (int i = 0; i < 32; ++i) values[i] = static_cast<Argument*>(lanes[i])->value;
    for (unsigned i = 0; i < 32; ++i) {
      auto* own = static_cast<Argument*>(lanes[i]);
      own->result = Choose::of(values, i, own->parameter);
    }
  });
  return argument.result;
}

struct Xor {
  template <typename T>
  static T of(const T* values, unsigned lane, unsigned parameter) {
    return values[(lane ^ parameter) & 31];
  }
};
struct From {
  template <typename T>
  static T of(const T* values, unsigned, unsigned parameter) {
    return values[parameter & 31];
  }
};
struct Down {
  template <typename T>
  static T of(const T* values, unsigned lane, unsigned parameter) {
    return values[lane + parameter < 32 ? lane + parameter : lane];
  }
};
struct Ballot {
  static unsigned of(const unsigned* values, unsigned, unsigned) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= (values[i] ? 1u : 0u) << i;
    return bits;
  }
};

}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return simt::exchange("shfl", mask, value, lane, simt::From());
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return simt::exchange("shfl.xor", mask, value, bits, simt::Xor());
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  return simt::exchange("shfl.down", mask, value, by, simt::Down());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return simt::exchange("ballot", mask, static_cast<unsigned>(predicate != 0), 0, simt::Ballot());
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  if (mask != 0xffffffffu) simt::fail("__syncwarp of a part of the warp (mask %#x): not emulated", mask);
  simt::warp_collective("__syncwarp", nullptr, [](void* const*) { simt::order_warp(); });
}

// Threads see each other's writes immediately.
inline void __threadfence() { simt::race::fence(); }

// Fibres switch only at barriers, so a plain addition is atomic.
template <typename T>
SIMT_UNCHECKED T atomicAdd(T* address, T value) {
  simt::race::access(simt::race::Access::atomic, address, sizeof(T));
  simt::race::relaxed(reinterpret_cast<uintptr_t>(address));
  const T before = *address;
  *address += value;
  return before;
}

// ---- the runtime

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrCooperativeLaunch, cudaDevAttrComputeCapabilityMajor };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative, cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? simt::error() : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = simt::device.multiprocessors; break;
    case cudaDevAttrCooperativeLaunch: *value = simt::device.cooperative; break;
    case cudaDevAttrComputeCapabilityMajor: *value = simt::device.capability; break;
  }
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= simt::device.shared_bytes ? cudaSuccess : cudaErrorInvalidValue;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = simt::device.resident_blocks;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(arguments...);
  simt::Launch launch{reinterpret_cast<const void*>(kernel),
                      {config->gridDim.x, config->gridDim.y, config->gridDim.z},
                      {config->blockDim.x, config->blockDim.y, config->blockDim.z},
                      config->dynamicSmemBytes,
                      false,
                      1};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const auto& value = config->attrs[i].val;
    switch (config->attrs[i].id) {
      case cudaLaunchAttributeCooperative: launch.cooperative = value.cooperative != 0; break;
      case cudaLaunchAttributeClusterDimension:
        if (value.clusterDim.y != 1 || value.clusterDim.z != 1) return cudaErrorInvalidValue;  // not emulated
        launch.cluster = value.clusterDim.x;
        break;
    }
  }
  return simt::run(launch, [&] { std::apply(kernel, copies); }) ? cudaSuccess : cudaErrorLaunchFailure;
}
