// Small kernels that test csrc/simt. Each is correct with fault 0; other faults leave out a barrier or a wait, for
// example, and the harness must detect them: as an error or a wrong result.
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace hrm::probes {

struct Probe {
  const float* in;
  float* out;
  unsigned* counter;
  int fault;
};

__device__ float* shared_floats() { return reinterpret_cast<float*>(shared_memory()); }

// 64 threads: out is `in` reversed. Fault 1: no barrier between writing and reading.
__global__ void missing_barrier(Probe p) {
  float* shared = shared_floats();
  shared[threadIdx.x] = p.in[threadIdx.x];
  if (p.fault != 1) __syncthreads();
  p.out[threadIdx.x] = shared[63 - threadIdx.x];
}

// 64 threads, 4 floats each: out is `in`, through shared memory. Fault 1: no wait. Fault 2: no group, so nothing to
// wait for. Fault 3: the wait allows one group in flight, the only one.
__global__ void missing_wait(Probe p) {
  float* shared = shared_floats() + 4 * threadIdx.x;
  ptx::copy_async_16(shared, p.in + 4 * threadIdx.x, true);
  if (p.fault != 2) ptx::copy_async_commit();
  if (p.fault == 3) {
    ptx::copy_async_wait<1>();
  } else if (p.fault != 1) {
    ptx::copy_async_wait<0>();
  }
  for (int i = 0; i < 4; ++i) p.out[4 * threadIdx.x + i] = shared[i];
}

// 64 threads: out is `in` reversed, 256 floats in four rounds of 64 that use the same shared memory. Fault 1: no
// barrier before the next round's copies, which overwrite values that others still read.
__global__ void early_copy(Probe p) {
  float* shared = shared_floats();
  for (int round = 0; round < 4; ++round) {
    if (threadIdx.x < 16) ptx::copy_async_16(shared + 4 * threadIdx.x, p.in + 64 * round + 4 * threadIdx.x, true);
    ptx::copy_async_commit();
    ptx::copy_async_wait<0>();
    __syncthreads();
    p.out[255 - (64 * round + threadIdx.x)] = shared[threadIdx.x];
    if (p.fault != 1) __syncthreads();
  }
}

// 64 threads: each warp copies its tile of 32. Fault 1: tiles overlap by one, so nobody writes the last element.
__global__ void overlapping_tiles(Probe p) {
  const unsigned at = threadIdx.x / 32 * (p.fault == 1 ? 31 : 32) + threadIdx.x % 32;
  p.out[at] = p.in[at];
}

// 64 threads. Fault 1: the warps wait at different barriers. Fault 2: the second warp has ended.
__global__ void divergent_barrier(Probe p) {
  p.out[threadIdx.x] = p.in[threadIdx.x];
  if (p.fault == 2 && threadIdx.x >= 32) return;
  if (p.fault == 1 && threadIdx.x >= 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

// 64 threads, 64 floats of shared memory. Faults 1, 2: the last thread writes after or before it. Fault 3: far after
// it. Fault 4: an asynchronous copy ends after it. Fault 5: one is misaligned. Fault 6: reads global memory after `in`.
__global__ void out_of_bounds(Probe p) {
  float* shared = shared_floats();
  shared[threadIdx.x] = p.in[threadIdx.x];
  __syncthreads();
  p.out[threadIdx.x] = shared[threadIdx.x];
  if (threadIdx.x != 63) return;
  if (p.fault == 1) shared[64] = 1;
  if (p.fault == 2) shared[-1] = 1;
  if (p.fault == 3) shared[1024] = 1;
  if (p.fault == 4) ptx::copy_async_16(shared + 64, p.in, true);
  if (p.fault == 5) ptx::copy_async_16(shared + 1, p.in, true);
  if (p.fault == 6) p.out[0] = p.in[64];
}

// 32 threads: out is the sum of `in`, for all. Fault 1: the upper half has ended. Fault 2: the upper half votes.
__global__ void divergent_warp(Probe p) {
  float sum = p.in[threadIdx.x];
  if (p.fault == 1 && threadIdx.x >= 16) return;
  if (p.fault == 2 && threadIdx.x >= 16) __any_sync(0xffffffffu, 1);
  for (int bit = 16; bit > 0; bit /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
  p.out[threadIdx.x] = sum;
}

// Blocks of 32 threads: each writes its part of out, then reads the next block's; out[b] is in[b + 1], in parts of 32.
// Fault 1: no barrier of the grid. Fault 2: block 0 does not arrive. Fault 3: the launch is not cooperative.
__global__ void grid_barrier(Probe p) {
  const unsigned own = 32 * blockIdx.x + threadIdx.x, all = 32 * gridDim.x;
  float* exchange = p.out + all;
  exchange[own] = p.in[own];
  __syncthreads();
  if (p.fault != 1) {
    if (threadIdx.x == 0 && !(p.fault == 2 && blockIdx.x == 0)) {
      ptx::add_release(p.counter, 1);
      while (ptx::load_acquire(p.counter) < gridDim.x) {}
    }
    __syncthreads();
  }
  p.out[own] = exchange[(own + 32) % all];
}

// Two blocks of 32 threads: block 0 writes `in` and sets a flag, block 1 waits for it and copies. Fault 1: the flag is
// plain memory. Fault 2: block 0 writes after it has set the flag.
__global__ void flag(Probe p) {
  float* exchange = p.out + 128;
  volatile unsigned* plain = p.counter;
  if (blockIdx.x == 0) {
    if (p.fault != 2) exchange[threadIdx.x] = p.in[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0 && p.fault != 1) ptx::add_release(p.counter, 1);
    if (threadIdx.x == 0 && p.fault == 1) *plain = 1;
    if (p.fault == 2) exchange[threadIdx.x] = p.in[threadIdx.x];
  } else {
    if (threadIdx.x == 0 && p.fault != 1) {
      while (ptx::load_acquire(p.counter) == 0) {}
    }
    if (threadIdx.x == 0 && p.fault == 1 && *plain == 0) p.out[0] = 0;
    __syncthreads();
    p.out[threadIdx.x] = exchange[threadIdx.x];
  }
}

// Blocks of 32 threads that need not run together: each writes its own part. Fault 1: the last block also reads the
// part of the first, which may not have written it yet.
__global__ void next_grid(Probe p) {
  p.out[32 * blockIdx.x + threadIdx.x] = p.in[threadIdx.x];
  if (p.fault == 1 && blockIdx.x == gridDim.x - 1) p.out[512 + threadIdx.x] = p.out[threadIdx.x];
}

// Blocks of 32 threads that need not run together: the last one to arrive adds what all have written. Fault 1: no fence
// before a block arrives. Fault 2: none after the last has. Fault 3: another block adds, too.
__global__ void last_block(Probe p) {
  auto* is_last = reinterpret_cast<int*>(shared_memory());
  p.out[64 + 32 * blockIdx.x + threadIdx.x] = p.in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    if (p.fault != 1) __threadfence();
    *is_last = atomicAdd(p.counter, 1u) == gridDim.x - 1 || p.fault == 3;
    if (p.fault != 2) __threadfence();
  }
  __syncthreads();
  if (*is_last) p.out[threadIdx.x] = p.out[64 + threadIdx.x] + p.out[96 + threadIdx.x] + p.out[128 + threadIdx.x];
}

// 64 threads, two rounds of copies into two halves of shared memory, in groups; the older is waited for, and a barrier
// shows it to all. Fault 1: they read the half of the younger.
__global__ void second_copy(Probe p) {
  float* shared = shared_floats();
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x < 16) ptx::copy_async_16(shared + 64 * round + 4 * threadIdx.x, p.in + 4 * threadIdx.x, true);
    ptx::copy_async_commit();
  }
  ptx::copy_async_wait<1>();
  __syncthreads();
  p.out[threadIdx.x] = shared[(p.fault == 1 ? 64 : 0) + (threadIdx.x ^ 1)];
  ptx::copy_async_wait<0>();
}

// One warp: out [16, 8] = a b^T + 1 with bfloat16 a [16, 16] and b [8, 16], the top 16 bits of `in`; then out
// [16, 8] = a c with c [16, 8], through the transposing load. Fault 1: a row's address is off by 8 bytes. Fault 2: the
// warp does not synchronise before it reads.
__global__ void products(Probe p) {
  auto* a = reinterpret_cast<uint16_t*>(shared_memory());  // [16, 16], then b [8, 16], c [16, 8]
  for (int i = threadIdx.x; i < 512; i += 32) a[i] = static_cast<uint16_t>(__float_as_uint(p.in[i]) >> 16);
  if (p.fault != 2) __syncwarp();
  const int lane = threadIdx.x;
  uint32_t as[4], bs[4];
  ptx::ldmatrix_x4(as, a + (lane % 16) * 16 + lane / 16 * 8 + (p.fault == 1 && lane == 3 ? 4 : 0));
  for (int product = 0; product < 2; ++product) {
    if (product == 0) {
      ptx::ldmatrix_x4(bs, a + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
    } else {
      ptx::ldmatrix_x4_transposed(bs, a + 384 + lane % 16 * 8);
    }
    float d[4] = {1, 1, 1, 1};
    ptx::mma_m16n8k16(d, as, bs[0], bs[1]);
    float* out = p.out + 128 * product + lane / 4 * 8 + 2 * (lane % 4);
    out[0] = d[0], out[1] = d[1], out[64] = d[2], out[65] = d[3];
  }
}

// One warp: out [16, 8] = a b^T with float16 a [16, 16] and b [8, 16], which `in` is rounded to. Fault 1: multiplied as
// if they were bfloat16.
__global__ void float16_products(Probe p) {
  auto* a = reinterpret_cast<uint32_t*>(shared_memory());  // [16, 16], then b [8, 16], in pairs
  for (int i = threadIdx.x; i < 192; i += 32) a[i] = ptx::to_float16x2(p.in[2 * i], p.in[2 * i + 1]);
  __syncwarp();
  const int lane = threadIdx.x;
  uint32_t as[4], bs[4];
  ptx::ldmatrix_x4(as, a + lane % 16 * 8 + lane / 16 * 4);
  ptx::ldmatrix_x4(bs, a + 128 + lane % 8 * 8 + lane / 8 % 2 * 4);
  float d[4] = {};
  if (p.fault == 1) {
    ptx::mma_m16n8k16(d, as, bs[0], bs[1]);
  } else {
    ptx::mma_m16n8k16_float16(d, as, bs[0], bs[1]);
  }
  float* out = p.out + lane / 4 * 8 + 2 * (lane % 4);
  out[0] = d[0], out[1] = d[1], out[64] = d[2], out[65] = d[3];
}

// 64 threads: out is `in` rounded to float16, then `in` reversed, from the upper halves of the pairs.
__global__ void float16_numbers(Probe p) {
  const uint32_t pair = ptx::to_float16x2(p.in[threadIdx.x], p.in[63 - threadIdx.x]);
  p.out[threadIdx.x] = ptx::from_float16(static_cast<uint16_t>(pair));
  p.out[64 + threadIdx.x] = ptx::from_float16(static_cast<uint16_t>(pair >> 16));
}

// Clusters of two blocks of 64 threads: out is the other block's part of `in`, reversed, read through its shared
// memory. Fault 1: no barrier of the cluster before reading. Fault 2: none before the end. Fault 3: launched without
// clusters. Fault 4: a warp arrives twice. Fault 5: a warp waits without having arrived. Fault 6: half of each warp
// arrives. Fault 7: a block accesses a third one. Fault 8: reads after the other block's memory.
__global__ void cluster_exchange(Probe p) {
  float* shared = shared_floats();
  shared[threadIdx.x] = p.in[64 * blockIdx.x + threadIdx.x];
  if (p.fault == 6 && threadIdx.x % 2) return;
  if (p.fault != 1 && !(p.fault == 5 && threadIdx.x < 32)) ptx::cluster_arrive();
  if (p.fault == 4 && threadIdx.x < 32) ptx::cluster_arrive();
  if (p.fault != 1) ptx::cluster_wait();
  const float* other = ptx::shared_of_block(shared, p.fault == 7 ? 2 : 1 - ptx::cluster_rank());
  p.out[64 * blockIdx.x + threadIdx.x] = other[(p.fault == 8 ? 64 + 1023 : 63) - threadIdx.x];
  if (p.fault != 2) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
}

// Clusters of two blocks of 64 threads: the first 32 of each end early, and the barrier waits only for the others.
// Fault 1: they have arrived before they end.
__global__ void cluster_without_ended(Probe p) {
  p.out[64 * blockIdx.x + threadIdx.x] = p.in[64 * blockIdx.x + threadIdx.x];
  if (threadIdx.x < 32) {
    if (p.fault == 1) ptx::cluster_arrive();
    return;
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
  const unsigned at = 64 * (blockIdx.x ^ 1) + threadIdx.x;
  p.out[256 + 64 * blockIdx.x + threadIdx.x] = p.out[at];
}

// One warp: shuffles, votes, atomics. Fault 1: one thread adds without an atomic.
__global__ void warp_functions(Probe p) {
  const float x = p.in[threadIdx.x];
  const unsigned all = 0xffffffffu;
  p.out[threadIdx.x] = __shfl_sync(all, x, 5);
  p.out[32 + threadIdx.x] = __shfl_xor_sync(all, x, 3);
  p.out[64 + threadIdx.x] = __shfl_down_sync(all, x, 4u);
  p.out[96 + threadIdx.x] = __shfl_sync(all, x, 31 - static_cast<int>(threadIdx.x));
  const unsigned positive = __ballot_sync(all, x > 0);
  p.out[128 + threadIdx.x] = static_cast<float>(positive >> threadIdx.x & 1);
  const int votes = __any_sync(all, threadIdx.x == 7) + 2 * __all_sync(all, threadIdx.x != 7);
  p.out[160 + threadIdx.x] = static_cast<float>(votes);
  if (p.fault == 1 && threadIdx.x == 5) {
    *p.counter += 2;
  } else {
    atomicAdd(p.counter, 2u);
  }
}

}  // namespace hrm::probes

#define PROBE(name, grid, threads, bytes) PROBE_OF_CLUSTERS(name, grid, threads, bytes, 1)
#define PROBE_OF_CLUSTERS(name, grid, threads, bytes, cluster)                                                         \
  extern "C" const char* probe_##name(const float* in, float* out, unsigned* counter, int fault) {                     \
    return hrm::launch(hrm::probes::name, dim3(grid), threads, bytes, grid > 1 && cluster == 1 && fault != 3, nullptr, \
                       hrm::probes::Probe{in, out, counter, fault}, fault == 3 ? 1 : cluster);                         \
  }
#define PROBE_IN_TURN(name, grid, threads, bytes)                                                  \
  extern "C" const char* probe_##name(const float* in, float* out, unsigned* counter, int fault) { \
    return hrm::launch(hrm::probes::name, dim3(grid), threads, bytes, false, nullptr,              \
                       hrm::probes::Probe{in, out, counter, fault});                               \
  }
PROBE(missing_barrier, 1, 64, 256)
PROBE(missing_wait, 1, 64, 1024)
PROBE(early_copy, 1, 64, 256)
PROBE(overlapping_tiles, 1, 64, 0)
PROBE(divergent_barrier, 1, 64, 0)
PROBE(out_of_bounds, 1, 64, 256)
PROBE(divergent_warp, 1, 32, 0)
PROBE(grid_barrier, 3, 32, 0)
PROBE(flag, 2, 32, 0)
PROBE_IN_TURN(next_grid, 3, 32, 0)
PROBE_IN_TURN(last_block, 3, 32, 4)
PROBE(second_copy, 1, 64, 512)
PROBE(products, 1, 32, 1024)
PROBE(float16_products, 1, 32, 768)
PROBE(float16_numbers, 1, 64, 0)
PROBE(warp_functions, 1, 32, 0)
PROBE_OF_CLUSTERS(cluster_exchange, 4, 64, 256, 2)
PROBE_OF_CLUSTERS(cluster_without_ended, 4, 64, 0, 2)
