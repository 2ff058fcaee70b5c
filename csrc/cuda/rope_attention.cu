// Short full attention over packed qkv [B, S, 3 H d] with rotary positions on q and k, S <= 128, forward and backward.
//
// One thread block computes one head of one batch row, with one warp per 16 positions. A warp holds the scores of its
// queries with all keys in registers, so there is no loop over blocks of keys and no running softmax. q, k and v are
// copied to shared memory in their layout; each warp applies RoPE to its rows of q and k in registers: RoPE combines
// columns i and i + d / 2 of a row, and a lane of an mma fragment has both. A quad of lanes has 8 columns of a row of a
// result; before they write it, its lanes exchange words, so that each writes 16 bytes. Positions are padded to a
// multiple of 16 (82 to 96), not to a power of two. There are no atomics: the same input gives the same bits.
//
// Bytes read and written per token and head, with 2 d per vector: forward q, k, v and out, 8 d; backward q, k, v, dout,
// dq, dk and dv, 14 d, and the log-sum-exp, 4. All thread blocks share the RoPE tables, 8 d per position, so these come
// from L1 or L2.
//
// An estimate, not measured: at the published sizes (H 8, d 64) with S 82 and batch 384, an H200 with 4.3 TB/s and
// half of its 790 TFLOP/s through mma.sync needs 30 us forward for the memory (129 MB) and 18 us for the products
// (7.2 GFLOP on 96 positions); backward 53 us (227 MB) and 55 us (21.7 GFLOP: six products). At least two thread blocks
// share a multiprocessor, so the two overlap in part: 35 to 50 us forward, 65 to 100 us backward.
//
// Logarithms are to base 2: the scores contain a factor log2(e), and lse[b, h, m] = log2 sum_n 2^scores[m, n].
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace hrm::attention {  // not anonymous: tests look up the kernels' names

constexpr int kPositions = HRM_SHORT_POSITIONS;
constexpr int kTiles = kPositions / 16;      // of 16 positions: one warp each, and one step each of a product over keys
constexpr int kScoreBytes = 2 * kPositions;  // a row of probabilities in shared memory

struct BFloat16 {
  __device__ __forceinline__ static uint32_t pack(float low, float high) { return ptx::to_bfloat16x2(low, high); }
  __device__ __forceinline__ static float2 unpack(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k16(d, a, b0, b1);
  }
};

struct Float16 {
  __device__ __forceinline__ static uint32_t pack(float low, float high) { return ptx::to_float16x2(low, high); }
  __device__ __forceinline__ static float2 unpack(uint32_t pair) {
    return make_float2(ptx::from_float16(static_cast<uint16_t>(pair)),
                       ptx::from_float16(static_cast<uint16_t>(pair >> 16)));
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k16_float16(d, a, b0, b1);
  }
};

// Swizzled: 16-byte chunk c of row r is at c ^ r mod 8, so that the eight rows of an ldmatrix use different banks.
// Two rows of 64 bytes share a line of banks.
template <int kRowBytes>
__device__ __forceinline__ int offset(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (kRowBytes == 64 ? row / 2 % 4 : row % 8)) << 4);
}

// The operations of a warp on its 16 rows, from `first` on, of q, k, v and similar matrices of a head. In a fragment,
// the left operand of mma, word [k][2 c + r] of a lane has columns 16 k + 8 c + 2 (lane % 4), + 1 of row lane / 4 + 8
// r. In a tile, the result of mma, [n][2 r] and [n][2 r + 1] are columns 8 n + 2 (lane % 4), + 1 of that row.
template <typename Number, int kHead>
struct Rows {
  static constexpr int kRowBytes = 2 * kHead, kSteps = kHead / 16;
  using Fragment = uint32_t[kSteps][4];
  using Tile = float[2 * kSteps][4];

  const hrm_rope_attention& p;
  int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x) / 32 * 16;

  __device__ __forceinline__ explicit Rows(const hrm_rope_attention& problem) : p(problem) {}

  // The offset of this block's row and head in a tensor with `parts` parts of H d numbers per position, in part `part`.
  __device__ __forceinline__ size_t at(int parts, int part) const {
    const int head = static_cast<int>(blockIdx.x) % p.heads, row = static_cast<int>(blockIdx.x) / p.heads;
    return (static_cast<size_t>(row) * p.positions * parts + part) * p.heads * kHead + head * kHead;
  }

  // Starts copying the warp's rows to shared memory, with zeros from row S on.
  __device__ __forceinline__ void load(unsigned char* to, const void* from, int parts, int part) const {
    const uint16_t* numbers = static_cast<const uint16_t*>(from) + at(parts, part);
#pragma unroll
    for (int i = lane; i < 16 * kHead / 8; i += 32) {
      const int row = first + i / (kHead / 8), chunk = i % (kHead / 8);
      const bool valid = row < p.positions;
      ptx::copy_async_16(to + offset<kRowBytes>(row, chunk),
                         numbers + static_cast<size_t>(valid ? row : 0) * parts * p.heads * kHead + 8 * chunk, valid);
    }
  }

  __device__ __forceinline__ void read(Fragment& fragment, const unsigned char* from) const {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      ptx::ldmatrix_x4(fragment[k], from + offset<kRowBytes>(first + lane % 16, 2 * k + lane / 16));
    }
  }

  template <int kCount, int kBytes>
  __device__ __forceinline__ void write(unsigned char* to, const uint32_t (&fragment)[kCount][4], int count) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (k >= count) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first + lane / 4 + i % 2 * 8;
        *reinterpret_cast<uint32_t*>(to + offset<kBytes>(row, 2 * k + i / 2) + lane % 4 * 4) = fragment[k][i];
      }
    }
  }

  // Calls rotate_pair(c, r, cos, sin) for all columns 8 c + 2 (lane % 4), + 1 of the first half and both rows r of the
  // lane, with cos and sin of these columns and of their partners d / 2 further on.
  template <typename Rotate>
  __device__ __forceinline__ void each_pair(Rotate rotate_pair) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first + lane / 4 + 8 * r;
      const int table = (row < p.positions ? row : p.positions - 1) * kHead + lane % 4 * 2;
#pragma unroll
      for (int c = 0; c < kSteps; ++c) {
        const auto load = [&](const float* values, int half) {
          return *reinterpret_cast<const float2*>(values + table + 8 * c + half * (kHead / 2));
        };
        const float2 cos[2] = {load(p.cos, 0), load(p.cos, 1)}, sin[2] = {load(p.sin, 0), load(p.sin, 1)};
        rotate_pair(c, r, cos, sin);
      }
    }
  }

  __device__ __forceinline__ static void rotate(Fragment& x, int c, int r, const float2 (&cos)[2],
                                                const float2 (&sin)[2]) {
    uint32_t &low = x[c / 2][c % 2 * 2 + r], &high = x[(c + kSteps) / 2][(c + kSteps) % 2 * 2 + r];
    const float2 a = Number::unpack(low), b = Number::unpack(high);
    low = Number::pack(a.x * cos[0].x - b.x * sin[0].x, a.y * cos[0].y - b.y * sin[0].y);
    high = Number::pack(b.x * cos[1].x + a.x * sin[1].x, b.y * cos[1].y + a.y * sin[1].y);
  }

  // Applies RoPE to the warp's rows of q, in registers, and of k, in shared memory; rounds them, as the reference does.
  __device__ __forceinline__ void rotate_q_and_k(Fragment& q, unsigned char* keys) const {
    if (!p.cos) return;
    Fragment k;
    read(k, keys);
    each_pair([&](int c, int r, const float2(&cos)[2], const float2(&sin)[2]) {
      rotate(q, c, r, cos, sin);
      rotate(k, c, r, cos, sin);
    });
    __syncwarp();  // all lanes have read
    write<kSteps, kRowBytes>(keys, k, kSteps);
  }

  // Applies the transpose of RoPE to a gradient.
  __device__ __forceinline__ void rotate_back(Tile& x) const {
    if (!p.cos) return;
    each_pair([&](int c, int r, const float2(&cos)[2], const float2(&sin)[2]) {
      float *low = x[c] + 2 * r, *high = x[c + kSteps] + 2 * r;
      const float2 a = make_float2(low[0], low[1]), b = make_float2(high[0], high[1]);
      low[0] = a.x * cos[0].x + b.x * sin[1].x, low[1] = a.y * cos[0].y + b.y * sin[1].y;
      high[0] = b.x * cos[1].x - a.x * sin[0].x, high[1] = b.y * cos[1].y - a.y * sin[0].y;
    });
  }

  // Computes result [16, 16] = a x^T for 16 rows of x in shared memory, from `row` on.
  __device__ __forceinline__ void scores(float (&result)[2][4], const Fragment& a, const unsigned char* x,
                                         int row) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) result[n][i] = 0;
    }
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, x + offset<kRowBytes>(row + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      Number::multiply(result[0], a[k], b[0], b[1]);
      Number::multiply(result[1], a[k], b[2], b[3]);
    }
  }

  // Adds a x to sum, with a [16, 16] and 16 rows of x in shared memory, from `row` on.
  __device__ __forceinline__ void accumulate(Tile& sum, const uint32_t (&a)[4], const unsigned char* x, int row) const {
#pragma unroll
    for (int n = 0; n < kSteps; ++n) {
      uint32_t b[4];
      ptx::ldmatrix_x4_transposed(b, x + offset<kRowBytes>(row + lane / 8 % 2 * 8 + lane % 8, 2 * n + lane / 16));
      Number::multiply(sum[2 * n], a, b[0], b[1]);
      Number::multiply(sum[2 * n + 1], a, b[2], b[3]);
    }
  }

  // Computes sum = w^T x for the warp's 16 columns of w [S, S], and x, both in shared memory.
  __device__ __forceinline__ void columns(Tile& sum, const unsigned char* w, const unsigned char* x) const {
    for (auto& n : sum) {
      for (float& value : n) value = 0;
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      if (16 * m >= p.positions) break;
      uint32_t a[4];
      ptx::ldmatrix_x4_transposed(a,
                                  w + offset<kScoreBytes>(16 * m + lane / 16 * 8 + lane % 8, first / 8 + lane / 8 % 2));
      accumulate(sum, a, x, 16 * m);
    }
  }

  // Writes factor[r] times a tile's rows r to a tensor of S rows. The four lanes of a quad transpose their four words
  // of a row first, so that each lane has 16 consecutive bytes.
  __device__ __forceinline__ void store(const Tile& tile, const float (&factor)[2], void* to, int parts,
                                        int part) const {
    uint16_t* numbers = static_cast<uint16_t*>(to) + at(parts, part);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first + lane / 4 + 8 * r;
#pragma unroll
      for (int n = 0; n < 2 * kSteps; n += 4) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          words[i] = Number::pack(tile[n + i][2 * r] * factor[r], tile[n + i][2 * r + 1] * factor[r]);
        }
#pragma unroll
        for (int bit = 1; bit <= 2; bit *= 2) {
          const bool upper = lane & bit;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int low = bit == 1 ? 2 * i : i;
            const uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? words[low] : words[low + bit], bit);
            (upper ? words[low] : words[low + bit]) = other;
          }
        }
        if (row < p.positions) {
          uint16_t* at_row = numbers + static_cast<size_t>(row) * parts * p.heads * kHead;
          *reinterpret_cast<uint4*>(at_row + 8 * (n + lane % 4)) = make_uint4(words[0], words[1], words[2], words[3]);
        }
      }
    }
  }
};

// The sum and the maximum over the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

template <int kHead>
__device__ __forceinline__ float log2_scale() {
  return 1.4426950408889634f * rsqrtf(static_cast<float>(kHead));
}

// Computes out and lse of one head: each warp takes 16 queries and iterates over tiles of 16 keys.
// Shared memory: k, v and q, each [S rounded up to a multiple of 16, d].
template <typename Number, int kHead>
__global__ void __launch_bounds__(2 * kPositions)
    rope_attention_forward_kernel(const __grid_constant__ hrm_rope_attention p) {
  const Rows<Number, kHead> rows(p);
  const int lane = rows.lane, S = p.positions, bytes = static_cast<int>(blockDim.x) / 2 * 2 * kHead;
  unsigned char *keys = shared_memory(), *values = keys + bytes, *queries = values + bytes;
  rows.load(queries, p.qkv, 3, 0);
  rows.load(keys, p.qkv, 3, 1);
  ptx::copy_async_commit();
  rows.load(values, p.qkv, 3, 2);
  ptx::copy_async_commit();
  ptx::copy_async_wait<1>();
  __syncwarp();  // the warp's rows of q and k have arrived
  typename Rows<Number, kHead>::Fragment q;
  rows.read(q, queries);
  rows.rotate_q_and_k(q, keys);
  ptx::copy_async_wait<0>();
  __syncthreads();  // k and v are complete

  float score[kTiles][2][4];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (16 * n >= S) break;
    rows.scores(score[n], q, keys, 16 * n);
  }
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = -INFINITY, sum = 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (16 * n >= S) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& value = score[n][i / 2][2 * r + i % 2];
        value = 16 * n + i / 2 * 8 + lane % 4 * 2 + i % 2 < S ? value * log2_scale<kHead>() : -INFINITY;
        largest = fmaxf(largest, value);
      }
    }
    largest = quad_max(largest);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      if (16 * n >= S) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& value = score[n][i / 2][2 * r + i % 2];
        sum += value = exp2f(value - largest);
      }
    }
    sum = quad_sum(sum);
    factor[r] = 1 / sum;
    const int row = rows.first + lane / 4 + 8 * r;
    if (p.lse && lane % 4 == 0 && row < S) p.lse[static_cast<size_t>(blockIdx.x) * S + row] = largest + log2f(sum);
  }

  typename Rows<Number, kHead>::Tile out = {};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (16 * n >= S) break;
    uint32_t probability[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &score[n][i / 2][i % 2 * 2];
      probability[i] = Number::pack(pair[0], pair[1]);
    }
    rows.accumulate(out, probability, values, 16 * n);
  }
  rows.store(out, factor, p.out, 1, 0);
}

// Computes dq, dk and dv of one head: each warp computes dq of its 16 rows as queries, then dv and dk of its rows as
// keys. For dv and dk the warps write probabilities, then gradients of scores, to shared memory, and each reads its
// columns. Shared memory: k, then probabilities, then gradients of scores; q of each warp's rows, then v, then all of
// q; dout.
//
// The launch bound for d = 64 limits registers to 168, so that two thread blocks of 82 positions (12 warps) share a
// multiprocessor.
template <typename Number, int kHead>
__global__ void __launch_bounds__(kHead == 64 ? 384 : 2 * kPositions)
    rope_attention_backward_kernel(const __grid_constant__ hrm_rope_attention p) {
  using Head = Rows<Number, kHead>;
  const Head rows(p);
  const int lane = rows.lane, S = p.positions, positions = static_cast<int>(blockDim.x) / 2;
  unsigned char *keys = shared_memory(), *exchange = keys;
  unsigned char* values = keys + positions * (Head::kRowBytes > kScoreBytes ? Head::kRowBytes : kScoreBytes);
  unsigned char *queries = values, *douts = values + positions * Head::kRowBytes;
  rows.load(queries, p.qkv, 3, 0);
  rows.load(keys, p.qkv, 3, 1);
  ptx::copy_async_commit();
  rows.load(douts, p.dout, 1, 0);
  ptx::copy_async_commit();
  ptx::copy_async_wait<1>();
  __syncwarp();  // the warp's rows of q and k have arrived
  typename Head::Fragment q;
  rows.read(q, queries);
  __syncwarp();  // all lanes have read q: v may overwrite it
  rows.load(values, p.qkv, 3, 2);
  ptx::copy_async_commit();
  rows.rotate_q_and_k(q, keys);
  __syncthreads();  // k is complete

  // queries from S on have dout = 0, so dp = 0, and their probabilities have no effect
  float lse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = rows.first + lane / 4 + 8 * r;
    lse[r] = row < S ? p.lse[static_cast<size_t>(blockIdx.x) * S + row] : 0;
  }
  float probability[kTiles][2][4];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (16 * n >= S) break;
    rows.scores(probability[n], q, keys, 16 * n);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& value = probability[n][i / 4][i % 4];
      const int key = 16 * n + i / 4 * 8 + lane % 4 * 2 + i % 2;
      value = key < S ? exp2f(value * log2_scale<kHead>() - lse[i % 4 / 2]) : 0;
    }
  }
  ptx::copy_async_wait<0>();
  __syncthreads();  // v and dout are complete

  // delta = sum_n p dp / sum_n p. The sum of p differs from 1 by the rounding of lse; dividing by it cancels this error
  // for large scores and one-hot rows. dp is computed again below, to save registers.
  typename Head::Fragment dout;
  rows.read(dout, douts);
  float delta[2] = {}, weight[2] = {};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (16 * n >= S) break;
    float dp[2][4];
    rows.scores(dp, dout, values, 16 * n);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      delta[i % 4 / 2] += probability[n][i / 4][i % 4] * dp[i / 4][i % 4];
      weight[i % 4 / 2] += probability[n][i / 4][i % 4];
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) delta[r] = quad_sum(delta[r]) / quad_sum(weight[r]);
  uint32_t p_words[kTiles][4], ds_words[kTiles][4];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (16 * n >= S) break;
    float dp[2][4];
    rows.scores(dp, dout, values, 16 * n);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float *w = &probability[n][i / 2][i % 2 * 2], *d = &dp[i / 2][i % 2 * 2];
      p_words[n][i] = Number::pack(w[0], w[1]);
      ds_words[n][i] = Number::pack(w[0] * (d[0] - delta[i % 2]), w[1] * (d[1] - delta[i % 2]));
    }
  }

  __syncthreads();  // all threads have read v: q overwrites it, which frees its registers
  rows.template write<Head::kSteps, Head::kRowBytes>(queries, q, Head::kSteps);
  const float one[2] = {1, 1}, scale = rsqrtf(static_cast<float>(kHead)), scales[2] = {scale, scale};
  typename Head::Tile sum = {};
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (16 * n >= S) break;
    rows.accumulate(sum, ds_words[n], keys, 16 * n);
  }
  rows.rotate_back(sum);
  rows.store(sum, scales, p.dqkv, 3, 0);

  __syncthreads();  // all threads have read k
  rows.template write<kTiles, kScoreBytes>(exchange, p_words, positions / 16);
  __syncthreads();  // the probabilities are complete
  rows.columns(sum, exchange, douts);
  rows.store(sum, one, p.dqkv, 3, 2);
  __syncthreads();  // all threads have read the probabilities
  rows.template write<kTiles, kScoreBytes>(exchange, ds_words, positions / 16);
  __syncthreads();  // the gradients of scores are complete
  rows.columns(sum, exchange, queries);
  rows.rotate_back(sum);
  rows.store(sum, scales, p.dqkv, 3, 1);
}

using Kernel = void (*)(hrm_rope_attention);

template <typename Number>
Kernel kernel_for(int head_dim, bool backward) {
  switch (head_dim) {
    case 32: return backward ? rope_attention_backward_kernel<Number, 32> : rope_attention_forward_kernel<Number, 32>;
    case 64: return backward ? rope_attention_backward_kernel<Number, 64> : rope_attention_forward_kernel<Number, 64>;
    case 128:
      return backward ? rope_attention_backward_kernel<Number, 128> : rope_attention_forward_kernel<Number, 128>;
    default: return nullptr;
  }
}

const char* launch(const hrm_rope_attention& problem, bool backward, void* stream) {
  const Kernel kernel = problem.dtype == HRM_FLOAT16 ? kernel_for<Float16>(problem.head_dim, backward)
                                                     : kernel_for<BFloat16>(problem.head_dim, backward);
  const int warps = (problem.positions + 15) / 16, row = 2 * problem.head_dim;
  const int first = backward && row < kScoreBytes ? kScoreBytes : row;
  const size_t bytes = static_cast<size_t>(16 * warps) * (first + 2 * row);
  if (bytes > 48 << 10) {  // the limit without an attribute
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return cudaGetErrorString(error);
    }
  }
  const auto blocks = static_cast<unsigned>(problem.batch * problem.heads);
  return hrm::launch(kernel, dim3(blocks), 32 * static_cast<unsigned>(warps), bytes, false, stream, problem);
}

}  // namespace hrm::attention

const char* hrm_cuda_rope_attention_forward(const hrm_rope_attention* problem, void* stream) {
  return hrm::attention::launch(*problem, false, stream);
}

const char* hrm_cuda_rope_attention_backward(const hrm_rope_attention* problem, void* stream) {
  return hrm::attention::launch(*problem, true, stream);
}
