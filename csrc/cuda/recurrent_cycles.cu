// The no-gradient part of a segment in one launch, for small batches, whose time goes into kernel launches and reading
// weights from L2.
//
// All thread blocks run the same phases, with a grid barrier after each: for each block of the model qkv + RoPE,
// attention, o + residual, gate_up + SwiGLU, down + residual; between passes a norm and the next injection. A phase
// distributes the tiles of its output over the thread blocks. While a thread block waits at the barrier, it already
// copies the weights of its next tile to shared memory, because they depend on no result.
//
// The norms are deferred. The phases pass on u = x + sublayer(x) in bfloat16, and a float32 sum of squares for each row
// and column tile. RMSNorm without a weight scales a row by 1/rms, which commutes with the next product: each epilogue
// scales its rows. Sums are added in a fixed order, so the result does not depend on timing.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace hrm::cycles {  // not anonymous: tests look up the kernels' names

using bfloat16 = uint16_t;  // the bits

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kSlice = 128;  // of K per stage: 32 for each of four k-groups of warps
constexpr int kSliceBytes = 2 * kSlice;
constexpr int kStages = 3;                          // of the pipeline: the current slice and two in flight
constexpr int kTallRows = 48, kTallColumns = 64;    // 82 positions fill two such tiles, with one row in seven empty
constexpr int kSmallRows = 32, kSmallColumns = 32;  // for o and down of a small batch: more tiles to distribute
constexpr int kKeys = 128;                          // largest number of positions: 4 warps attend to 32 keys each
constexpr int kStageBytes = (kTallRows + kTallColumns) * kSliceBytes;
constexpr int kScratch = kStages * kStageBytes;  // offset after the stages: row scales, and attention's statistics
constexpr int kSharedBytes = kScratch + 2 * kWarps * 16 * static_cast<int>(sizeof(float));
static_assert(kSharedBytes <= 99 << 10, "a block of sm_86, sm_89 and sm_120 has 99 KB");

__device__ __forceinline__ float2 unpack(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

__device__ __forceinline__ float2 load_pair(const bfloat16* from) {
  return unpack(*reinterpret_cast<const uint32_t*>(from));
}

__device__ __forceinline__ void store_pair(bfloat16* to, uint32_t pair) { *reinterpret_cast<uint32_t*>(to) = pair; }

// The kernel's parameters. Between grid barriers, u and sums hold the hidden states.
struct Cycles {
  hrm_recurrent_cycles problem;
  int rows;            // M = B S
  bool tall;           // o and down use tall tiles
  bfloat16* u;         // [M, D]
  bfloat16* qkv;       // [M, 3 H d], q and k after RoPE
  bfloat16* attended;  // [M, H d]
  bfloat16* hidden;    // [M, I]
  float* sums[2];      // [M, tiles of D]: squares of u after down, and after o
  unsigned* arrived;   // kFirstCount and the number of arrivals at barriers since the launch
};

// Arrivals are counted modulo 2^32, from the highest count on: so every launch wraps, not only a very long one.
constexpr unsigned kFirstCount = ~0u;

// The grid barrier. Writes of any thread before it are visible to every thread after it.
struct Grid {
  unsigned* arrived;
  unsigned expected = kFirstCount;

  __device__ void barrier() {
    __syncthreads();
    expected += gridDim.x;
    if (threadIdx.x == 0) {
      ptx::add_release(arrived, 1);
      // no thread block is more than one barrier ahead, so the difference is small in either direction
      while (static_cast<int>(ptx::load_acquire(arrived) - expected) < 0) {}
    }
    __syncthreads();
  }
};

// A product A W^T with activations A [M, K] and weights W [., K]. The first half of column tile n starts at row
// first = n / per * stride + n % per * half of W, the second half at row first + partner. So one tile contains the
// columns that an epilogue combines: pairs of RoPE, or gate and up.
struct Product {
  const bfloat16* a;
  const bfloat16* weight;
  int K, tiles, per, stride, partner;

  __device__ int first(int tile, int half) const { return tile / per * stride + tile % per * half; }
};

// Swizzled: 16-byte chunk c of row r is at c ^ r mod 8, so that the eight rows of an ldmatrix use different banks.
__device__ __forceinline__ int slice_offset(int row, int chunk) {
  return row * kSliceBytes + ((chunk ^ (row & 7)) << 4);
}

template <int kRows, int kColumns>
struct Tile {
  static constexpr int kBytes = (kRows + kColumns) * kSliceBytes;
  static constexpr int kPitch =
      kColumns + 8;  // row stride of the sums in shared memory: float2 stores have no bank conflicts
  static_assert(kStages * kBytes <= kScratch && 4 * kRows * kPitch * 4 <= kScratch && kRows <= 2 * kWarps * 16, "");

  __device__ static void load_weights(const Product& product, int tile, int step) {
    unsigned char* to = shared_memory() + step % kStages * kBytes + kRows * kSliceBytes;
    const int first = product.first(tile, kColumns / 2);
    for (int i = threadIdx.x; i < kColumns * kSlice / 8; i += kThreads) {
      const int column = i / (kSlice / 8), chunk = i % (kSlice / 8);
      const int row = first + column + (column < kColumns / 2 ? 0 : product.partner - kColumns / 2);
      ptx::copy_async_16(to + slice_offset(column, chunk),
                         product.weight + static_cast<size_t>(row) * product.K + step * kSlice + chunk * 8, true);
    }
  }

  __device__ static void load_activations(const Product& product, int first, int rows, int step) {
    unsigned char* to = shared_memory() + step % kStages * kBytes;
    for (int i = threadIdx.x; i < kRows * kSlice / 8; i += kThreads) {
      const int row = i / (kSlice / 8), chunk = i % (kSlice / 8);
      const bool valid = first + row < rows;
      const bfloat16* from = product.a + static_cast<size_t>(valid ? first + row : 0) * product.K;
      ptx::copy_async_16(to + slice_offset(row, chunk), from + step * kSlice + chunk * 8, valid);
    }
  }

  // Starts copying the first weights of this thread block's first tile of `product`.
  __device__ static void prefetch(const Product& product, int rows) {
    const int row_tiles = (rows + kRows - 1) / kRows;
    if (static_cast<int>(blockIdx.x) >= row_tiles * product.tiles) return;
#pragma unroll 1
    for (int step = 0; step < kStages - 1 && step < product.K / kSlice; ++step) {
      load_weights(product, blockIdx.x / row_tiles, step);
    }
  }

  // Returns the sum of the four k-groups' partial sums of columns `column` and column + 1.
  __device__ static float2 total(int row, int column) {
    const float* from = reinterpret_cast<const float*>(shared_memory()) + row * kPitch + column;
    float2 sum = *reinterpret_cast<const float2*>(from);
    for (int group = 1; group < 4; ++group) {
      const float2 partial = *reinterpret_cast<const float2*>(from + group * kRows * kPitch);
      sum.x += partial.x;
      sum.y += partial.y;
    }
    return sum;
  }

  // Computes this thread block's tiles, after prefetch(product), in a loop over slices of K. Warp w computes half w % 2
  // of the columns from quarter w / 2 of each slice. With `sums` of `parts` tiles, scales[row] is 1/rms of u, else 1.
  // All threads call epilogue(first row, first row of W, tile, scales), which reads total() and writes results.
  template <typename Epilogue>
  __device__ static void compute(const Cycles& p, const Product& product, const float* sums, int parts,
                                 Epilogue epilogue) {
    const int row_tiles = (p.rows + kRows - 1) / kRows, steps = product.K / kSlice;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int half = warp % 2, group = warp / 2;
    float* scales = reinterpret_cast<float*>(shared_memory() + kScratch);
    for (int item = blockIdx.x; item < row_tiles * product.tiles; item += gridDim.x) {
      const int tile = item / row_tiles, first = item % row_tiles * kRows;
#pragma unroll 1
      for (int step = 0; step < kStages - 1; ++step) {
        if (step < steps) {
          if (item != static_cast<int>(blockIdx.x)) load_weights(product, tile, step);
          load_activations(product, first, p.rows, step);
        }
        ptx::copy_async_commit();
      }
      for (int i = threadIdx.x; i < kRows; i += kThreads) {
        float scale = 1;
        if (sums && first + i < p.rows) {
          float sum = 0;
          for (int part = 0; part < parts; ++part) sum += sums[(first + i) * parts + part];
          scale = rsqrtf(sum / static_cast<float>(p.problem.width) + p.problem.eps);
        }
        scales[i] = scale;
      }

      float sum[kRows / 16][kColumns / 16][4] = {};
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        ptx::copy_async_wait<kStages - 2>();
        __syncthreads();  // the slice has arrived, and the memory of the previous slice is free
        if (step + kStages - 1 < steps) {
          load_weights(product, tile, step + kStages - 1);
          load_activations(product, first, p.rows, step + kStages - 1);
        }
        ptx::copy_async_commit();
        const unsigned char* a = shared_memory() + step % kStages * kBytes;
        const unsigned char* w = a + kRows * kSliceBytes;
#pragma unroll
        for (int k = 4 * group; k < 4 * group + 4; k += 2) {  // in chunks of 8
          uint32_t as[kRows / 16][4], ws[kColumns / 32][4];
#pragma unroll
          for (int m = 0; m < kRows / 16; ++m) {
            ptx::ldmatrix_x4(as[m], a + slice_offset(16 * m + lane % 16, k + lane / 16));
          }
#pragma unroll
          for (int n = 0; n < kColumns / 32; ++n) {
            const int column = half * kColumns / 2 + 16 * n + lane / 16 * 8 + lane % 8;
            ptx::ldmatrix_x4(ws[n], w + slice_offset(column, k + lane / 8 % 2));
          }
#pragma unroll
          for (int m = 0; m < kRows / 16; ++m) {
#pragma unroll
            for (int n = 0; n < kColumns / 16; ++n) {
              ptx::mma_m16n8k16(sum[m][n], as[m], ws[n / 2][2 * (n % 2)], ws[n / 2][2 * (n % 2) + 1]);
            }
          }
        }
      }
      __syncthreads();  // all threads have read the stages: the sums overwrite them
      float* to = reinterpret_cast<float*>(shared_memory()) + group * kRows * kPitch + half * kColumns / 2;
#pragma unroll
      for (int m = 0; m < kRows / 16; ++m) {
#pragma unroll
        for (int n = 0; n < kColumns / 16; ++n) {
          float* at = to + (16 * m + lane / 4) * kPitch + 8 * n + 2 * (lane % 4);
          *reinterpret_cast<float2*>(at) = make_float2(sum[m][n][0], sum[m][n][1]);
          *reinterpret_cast<float2*>(at + 8 * kPitch) = make_float2(sum[m][n][2], sum[m][n][3]);
        }
      }
      __syncthreads();
      epilogue(first, product.first(tile, kColumns / 2), tile, scales);
      __syncthreads();  // all threads have read the sums: copies may overwrite them
    }
  }
};

using Tall = Tile<kTallRows, kTallColumns>;
using Small = Tile<kSmallRows, kSmallColumns>;

// Computes qkv = u Wqkv^T with RoPE on q and k: a tile contains columns i and i + d / 2 of its heads.
template <int kHead>
__device__ void compute_qkv(const Cycles& p, const Product& product, const float* sums, int parts) {
  constexpr int kPartner = kHead == 32 ? 16 : 32;  // distance of i and i + d / 2 in the tile
  const int columns = 3 * p.problem.heads * kHead, turned = 2 * p.problem.heads * kHead;
  Tall::compute(p, product, sums, parts, [&](int first, int first_column, int, const float* scales) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kTallRows * kTallColumns / 4; i += kThreads) {
      const int row = i / (kTallColumns / 4), pair = 2 * (i % (kTallColumns / 4));
      if (first + row >= p.rows) continue;
      const int local = pair / kPartner * 2 * kPartner + pair % kPartner;
      const int column = first_column + local;
      const float scale = scales[row];
      float2 x = Tall::total(row, local), y = Tall::total(row, local + kPartner);
      x = make_float2(x.x * scale, x.y * scale);
      y = make_float2(y.x * scale, y.y * scale);
      if (column < turned && p.problem.cos) {
        const int at = (first + row) % p.problem.positions * kHead + column % kHead;
        const float2 cos_x = *reinterpret_cast<const float2*>(p.problem.cos + at);
        const float2 sin_x = *reinterpret_cast<const float2*>(p.problem.sin + at);
        const float2 cos_y = *reinterpret_cast<const float2*>(p.problem.cos + at + kHead / 2);
        const float2 sin_y = *reinterpret_cast<const float2*>(p.problem.sin + at + kHead / 2);
        const float2 before = x;
        x = make_float2(x.x * cos_x.x - y.x * sin_x.x, x.y * cos_x.y - y.y * sin_x.y);
        y = make_float2(y.x * cos_y.x + before.x * sin_y.x, y.y * cos_y.y + before.y * sin_y.y);
      }
      bfloat16* to = p.qkv + static_cast<size_t>(first + row) * columns + column;
      store_pair(to, ptx::to_bfloat16x2(x.x, x.y));
      store_pair(to + kHead / 2, ptx::to_bfloat16x2(y.x, y.y));
    }
  });
}

// Computes hidden = silu(gate) up: a tile contains 32 columns of gate and the same 32 columns of up.
__device__ void compute_gate_up(const Cycles& p, const Product& product, int parts) {
  Tall::compute(p, product, p.sums[1], parts, [&](int first, int first_column, int, const float* scales) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kTallRows * kTallColumns / 4; i += kThreads) {
      const int row = i / (kTallColumns / 4), column = 2 * (i % (kTallColumns / 4));
      if (first + row >= p.rows) continue;
      const float scale = scales[row];
      const float2 gate = Tall::total(row, column), up = Tall::total(row, column + kTallColumns / 2);
      const auto swiglu = [scale](float g, float u) { return g * scale / (1 + __expf(-g * scale)) * u * scale; };
      store_pair(p.hidden + static_cast<size_t>(first + row) * p.problem.inner + first_column + column,
                 ptx::to_bfloat16x2(swiglu(gate.x, up.x), swiglu(gate.y, up.y)));
    }
  });
}

// Computes u = norm(u) + A W^T, and writes the sum of squares of each row and tile to `to`. `sums` as for compute.
template <typename Kind, int kRows, int kColumns>
__device__ void compute_residual(const Cycles& p, const Product& product, const float* sums, float* to) {
  const int parts = product.tiles, D = p.problem.width;
  Kind::compute(p, product, sums, parts, [&](int first, int first_column, int tile, const float* scales) {
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kColumns / 2;
         i += kThreads) {  // all lanes of a warp make the same iterations
      const int row = i / (kColumns / 2), column = 2 * (i % (kColumns / 2));
      const bool valid = first + row < p.rows;
      float squares = 0;
      if (valid) {
        bfloat16* at = p.u + static_cast<size_t>(first + row) * D + first_column + column;
        const float2 sum = Kind::total(row, column), before = load_pair(at);
        const float scale = scales[row];
        const uint32_t rounded = ptx::to_bfloat16x2(before.x * scale + sum.x, before.y * scale + sum.y);
        store_pair(at, rounded);
        const float2 after = unpack(rounded);
        squares = after.x * after.x + after.y * after.y;
      }
      for (int bit = kColumns / 4; bit > 0; bit /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, bit);
      if (valid && column == 0) to[(first + row) * parts + tile] = squares;
    }
  });
}

__device__ void compute_residual(const Cycles& p, const Product& product, const float* sums, float* to) {
  if (p.tall) {
    compute_residual<Tall, kTallRows, kTallColumns>(p, product, sums, to);
  } else {
    compute_residual<Small, kSmallRows, kSmallColumns>(p, product, sums, to);
  }
}

// Computes attended = softmax(q k^T / sqrt(d)) v. A thread block iterates over items of 32 queries of a head: warp w
// takes queries 16 (w / 4) to 16 (w / 4) + 15 and keys 32 (w % 4) to 32 (w % 4) + 31. The partial results of four warps
// are then combined.
template <int kHead>
struct Attention {
  static constexpr int kRowBytes = 2 * kHead, kQueries = 32;
  static constexpr int kPitch = kHead + 8;
  static_assert((kQueries + 2 * kKeys) * kRowBytes <= kScratch && kWarps * 16 * kPitch * 4 <= kScratch, "");

  // As slice_offset, for rows of one head. Two rows of 64 bytes share a line of banks.
  __device__ static int offset(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ (kHead == 32 ? row / 2 % 4 : row % 8)) << 4);
  }

  __device__ static void load(unsigned char* to, const bfloat16* from, int first, int count, const Cycles& p) {
    const int stride = 3 * p.problem.heads * kHead;
#pragma unroll 1
    for (int i = threadIdx.x; i < count * kHead / 8; i += kThreads) {
      const int row = i / (kHead / 8), chunk = i % (kHead / 8);
      const bool valid = first + row < p.problem.positions;
      const bfloat16* at = from + static_cast<size_t>(valid ? first + row : 0) * stride;
      ptx::copy_async_16(to + offset(row, chunk), at + chunk * 8, valid);
    }
  }

  __device__ static void compute(const Cycles& p) {
    const int S = p.problem.positions, heads = p.problem.heads;
    const int tiles = (S + kQueries - 1) / kQueries, key_parts = (S + 31) / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int query = warp / 4 * 16, key = warp % 4 * 32;
    const float log2_scale = 1.4426950408889634f * rsqrtf(static_cast<float>(kHead));
    unsigned char* queries = shared_memory();
    unsigned char* keys = queries + kQueries * kRowBytes;
    unsigned char* values = keys + kKeys * kRowBytes;
    float* partial = reinterpret_cast<float*>(shared_memory());             // [warp, 16, pitch]
    float* largest = reinterpret_cast<float*>(shared_memory() + kScratch);  // [warp, 16], to base 2
    float* weights = largest + kWarps * 16;                                 // [warp, 16]: sums of exp2

    for (int item = blockIdx.x; item < p.problem.batch * heads * tiles; item += gridDim.x) {
      const int tile = item % tiles, head = item / tiles % heads, b = item / tiles / heads;
      const bfloat16* qkv = p.qkv + static_cast<size_t>(b) * S * 3 * heads * kHead + head * kHead;
      load(queries, qkv, tile * kQueries, kQueries, p);
      load(keys, qkv + heads * kHead, 0, 32 * key_parts, p);
      load(values, qkv + 2 * heads * kHead, 0, 32 * key_parts, p);
      ptx::copy_async_commit();
      ptx::copy_async_wait<0>();
      __syncthreads();

      const bool active = key < S && tile * kQueries + query < S;
      float out[kHead / 8][4] = {};
      if (active) {
        float score[4][4] = {};
#pragma unroll
        for (int k = 0; k < kHead / 8; k += 2) {  // in chunks of 8
          uint32_t q[4];
          ptx::ldmatrix_x4(q, queries + offset(query + lane % 16, k + lane / 16));
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            uint32_t rows[4];
            ptx::ldmatrix_x4(rows, keys + offset(key + 16 * n + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
            ptx::mma_m16n8k16(score[2 * n], q, rows[0], rows[1]);
            ptx::mma_m16n8k16(score[2 * n + 1], q, rows[2], rows[3]);
          }
        }
        // rows lane / 4 and lane / 4 + 8 of the warp's sixteen
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float maximum = -INFINITY;  // finite in the end, because the warp's first key exists
#pragma unroll
          for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float& value = score[n][2 * r + i];
              value = key + 8 * n + 2 * (lane % 4) + i < S ? value * log2_scale : -INFINITY;
              maximum = fmaxf(maximum, value);
            }
          }
          maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
          maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
          float sum = 0;
#pragma unroll
          for (int n = 0; n < 4; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) sum += score[n][2 * r + i] = exp2f(score[n][2 * r + i] - maximum);
          }
          sum += __shfl_xor_sync(0xffffffffu, sum, 1);
          sum += __shfl_xor_sync(0xffffffffu, sum, 2);
          if (lane % 4 == 0) {
            largest[warp * 16 + lane / 4 + 8 * r] = maximum;
            weights[warp * 16 + lane / 4 + 8 * r] = sum;
          }
        }
#pragma unroll
        for (int k = 0; k < 2; ++k) {  // sixteen keys each; the scores have the layout of mma's left operand
          const uint32_t probability[4] = {ptx::to_bfloat16x2(score[2 * k][0], score[2 * k][1]),
                                           ptx::to_bfloat16x2(score[2 * k][2], score[2 * k][3]),
                                           ptx::to_bfloat16x2(score[2 * k + 1][0], score[2 * k + 1][1]),
                                           ptx::to_bfloat16x2(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
          for (int n = 0; n < kHead / 16; ++n) {
            uint32_t rows[4];
            ptx::ldmatrix_x4_transposed(rows,
                                        values + offset(key + 16 * k + lane / 8 % 2 * 8 + lane % 8, 2 * n + lane / 16));
            ptx::mma_m16n8k16(out[2 * n], probability, rows[0], rows[1]);
            ptx::mma_m16n8k16(out[2 * n + 1], probability, rows[2], rows[3]);
          }
        }
      }
      __syncthreads();  // all threads have read keys and values: partial results overwrite them
      if (active) {
#pragma unroll
        for (int n = 0; n < kHead / 8; ++n) {
          float* at = partial + (warp * 16 + lane / 4) * kPitch + 8 * n + 2 * (lane % 4);
          *reinterpret_cast<float2*>(at) = make_float2(out[n][0], out[n][1]);
          *reinterpret_cast<float2*>(at + 8 * kPitch) = make_float2(out[n][2], out[n][3]);
        }
      }
      __syncthreads();
#pragma unroll 1
      for (int i = threadIdx.x; i < kQueries * kHead / 2; i += kThreads) {
        const int row = i / (kHead / 2), column = 2 * (i % (kHead / 2)), position = tile * kQueries + row;
        if (position >= S) continue;
        const int at = row / 16 * 64 + row % 16;  // row of the first of the four warps
        float maximum = largest[at];
        for (int part = 1; part < key_parts; ++part) maximum = fmaxf(maximum, largest[at + 16 * part]);
        float weight = 0;
        float2 sum = make_float2(0, 0);
        for (int part = 0; part < key_parts; ++part) {
          const float factor = exp2f(largest[at + 16 * part] - maximum);
          const float2 share = *reinterpret_cast<const float2*>(partial + (at + 16 * part) * kPitch + column);
          weight += factor * weights[at + 16 * part];
          sum.x += factor * share.x;
          sum.y += factor * share.y;
        }
        store_pair(p.attended + (static_cast<size_t>(b) * S + position) * heads * kHead + head * kHead + column,
                   ptx::to_bfloat16x2(sum.x / weight, sum.y / weight));
      }
      __syncthreads();  // all threads have read the partial results: copies may overwrite them
    }
  }
};

// Calls body(row) with one warp per row; each lane takes two columns per iteration. finish() and start() of a row run
// in the same threads, so they need no barrier between them.
template <typename Body>
__device__ __forceinline__ void each_row(const Cycles& p, Body body) {
  for (int row = blockIdx.x * kWarps + threadIdx.x / 32; row < p.rows; row += gridDim.x * kWarps) body(row);
}

// Computes z = norm(u) at the end of a pass.
__device__ void finish(const Cycles& p, int parts, void* z) {
  each_row(p, [&](int row) {
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum += p.sums[0][row * parts + part];
    const float scale = rsqrtf(sum / static_cast<float>(p.problem.width) + p.problem.eps);
    const size_t base = static_cast<size_t>(row) * p.problem.width;
    for (int column = 2 * (threadIdx.x % 32); column < p.problem.width; column += 64) {
      const float2 value = load_pair(p.u + base + column);
      store_pair(static_cast<bfloat16*>(z) + base + column, ptx::to_bfloat16x2(value.x * scale, value.y * scale));
    }
  });
}

// Computes u = z + injection, or z + (injection + x), at the start of a pass. Rounds each sum, as the reference does.
__device__ void start(const Cycles& p, const void* z, const void* injection, const void* x) {
  each_row(p, [&](int row) {
    const size_t base = static_cast<size_t>(row) * p.problem.width;
    for (int column = 2 * (threadIdx.x % 32); column < p.problem.width; column += 64) {
      float2 added = load_pair(static_cast<const bfloat16*>(injection) + base + column);
      if (x) {
        const float2 input = load_pair(static_cast<const bfloat16*>(x) + base + column);
        added = unpack(ptx::to_bfloat16x2(added.x + input.x, added.y + input.y));
      }
      const float2 value = load_pair(static_cast<const bfloat16*>(z) + base + column);
      store_pair(p.u + base + column, ptx::to_bfloat16x2(value.x + added.x, value.y + added.y));
    }
  });
}

template <int kHead>
__device__ void pass(const Cycles& p, Grid& grid, const hrm_block_weights* blocks, int layers) {
  const int D = p.problem.width, inner = p.problem.inner, columns = p.problem.heads * kHead;
  const int residual_columns = p.tall ? kTallColumns : kSmallColumns, parts = D / residual_columns;
  const auto weight = [](const void* pointer) { return static_cast<const bfloat16*>(pointer); };
  const auto qkv_of = [&](const hrm_block_weights& block) {
    // a tile is one head of 64, two heads of 32, or half a head of 128: 32 columns i and 32 columns i + 64
    return Product{p.u,
                   weight(block.qkv),
                   D,
                   3 * columns / kTallColumns,
                   kHead == 128 ? 2 : 1,
                   kHead == 128 ? 128 : kTallColumns,
                   kHead == 128 ? 64 : kTallColumns / 2};
  };
  const auto residual = [&](const bfloat16* a, const void* matrix, int K) {
    return Product{a, weight(matrix), K, parts, 1, residual_columns, residual_columns / 2};
  };
  const auto prefetch_residual = [&](const Product& product) {
    if (p.tall) {
      Tall::prefetch(product, p.rows);
    } else {
      Small::prefetch(product, p.rows);
    }
  };
  Product qkv = qkv_of(blocks[0]);
  Tall::prefetch(qkv, p.rows);
  grid.barrier();
  for (int layer = 0; layer < layers; ++layer) {
    const hrm_block_weights& block = blocks[layer];
    const float* sums = layer ? p.sums[0] : nullptr;  // the input of a pass is not normalised
    compute_qkv<kHead>(p, qkv, sums, parts);
    grid.barrier();
    Attention<kHead>::compute(p);
    const Product o = residual(p.attended, block.o, columns);
    prefetch_residual(o);
    grid.barrier();
    compute_residual(p, o, sums, p.sums[1]);
    const Product gate_up{p.u, weight(block.gate_up), D, inner / (kTallColumns / 2), 1, kTallColumns / 2, inner};
    Tall::prefetch(gate_up, p.rows);
    grid.barrier();
    compute_gate_up(p, gate_up, parts);
    const Product down = residual(p.hidden, block.down, inner);
    prefetch_residual(down);
    grid.barrier();
    compute_residual(p, down, p.sums[1], p.sums[0]);
    if (layer + 1 < layers) {
      qkv = qkv_of(blocks[layer + 1]);
      Tall::prefetch(qkv, p.rows);
    }
    grid.barrier();
  }
}

template <int kHead>
__global__ void __launch_bounds__(kThreads, 1) recurrent_cycles_kernel(const __grid_constant__ Cycles p) {
  const hrm_recurrent_cycles& problem = p.problem;
  Grid grid{p.arrived};
  const int parts = problem.width / (p.tall ? kTallColumns : kSmallColumns);
  const void *z_H = problem.z_H, *z_L = problem.z_L;
  for (int h = 0; h < problem.H_cycles; ++h) {
    for (int l = 0; l <= problem.L_cycles; ++l) {
      if (h == problem.H_cycles - 1 && l >= problem.L_cycles - 1)
        break;  // the caller computes the last updates, with gradients
      const bool of_H = l == problem.L_cycles;
      start(p, of_H ? z_H : z_L, of_H ? z_L : z_H, of_H ? nullptr : problem.x);
      pass<kHead>(p, grid, of_H ? problem.H : problem.L, of_H ? problem.H_layers : problem.L_layers);
      finish(p, parts, of_H ? problem.new_z_H : problem.new_z_L);
      (of_H ? z_H : z_L) = of_H ? problem.new_z_H : problem.new_z_L;
    }
  }
}

using Kernel = void (*)(Cycles);

Kernel kernel_for(int head_dim) {
  switch (head_dim) {
    case 32: return recurrent_cycles_kernel<32>;
    case 64: return recurrent_cycles_kernel<64>;
    case 128: return recurrent_cycles_kernel<128>;
    default: return nullptr;
  }
}

int divide_up(int a, int b) { return (a + b - 1) / b; }

int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : 0;
}

// Returns how many thread blocks can be resident on the device, or 0 and the reason.
int resident_blocks(Kernel kernel, const char** reason) {
  int device = 0, per_multiprocessor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess && device_attribute(cudaDevAttrComputeCapabilityMajor, device) < 8) {
    *reason = "it needs compute capability 8.0 or newer";
    return 0;
  }
  if (error == cudaSuccess && !device_attribute(cudaDevAttrCooperativeLaunch, device)) {
    *reason = "the device does not support cooperative launches";
    return 0;
  }
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  }
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, kThreads, kSharedBytes);
  }
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    *reason = cudaGetErrorString(error);
    return 0;
  }
  if (!per_multiprocessor) *reason = "no multiprocessor has enough shared memory and registers for a thread block";
  return per_multiprocessor * device_attribute(cudaDevAttrMultiProcessorCount, device);
}

constexpr size_t kAlign = 256;

size_t align(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Assigns parts of the workspace to the arrays, unless cycles is nullptr; returns the size of the workspace.
size_t lay_out(const hrm_recurrent_cycles& problem, Cycles* cycles) {
  const size_t rows = static_cast<size_t>(problem.batch) * problem.positions;
  const size_t columns = static_cast<size_t>(problem.heads) * problem.head_dim;
  size_t used = 0;
  const auto take = [&](size_t bytes) {
    unsigned char* at = static_cast<unsigned char*>(problem.workspace) + used;
    used += align(bytes);
    return at;
  };
  unsigned char* arrived = take(sizeof(unsigned));
  unsigned char* u = take(2 * rows * problem.width);
  unsigned char* qkv = take(2 * rows * 3 * columns);
  unsigned char* attended = take(2 * rows * columns);
  unsigned char* hidden = take(2 * rows * problem.inner);
  unsigned char* sums[2];
  for (auto& part : sums) part = take(4 * rows * (problem.width / kSmallColumns));
  if (cycles) {
    cycles->arrived = reinterpret_cast<unsigned*>(arrived);
    cycles->u = reinterpret_cast<bfloat16*>(u);
    cycles->qkv = reinterpret_cast<bfloat16*>(qkv);
    cycles->attended = reinterpret_cast<bfloat16*>(attended);
    cycles->hidden = reinterpret_cast<bfloat16*>(hidden);
    for (int i = 0; i < 2; ++i) cycles->sums[i] = reinterpret_cast<float*>(sums[i]);
  }
  return used;
}

}  // namespace hrm::cycles

const char* hrm_cuda_recurrent_cycles_reason(const hrm_recurrent_cycles* problem) {
  using namespace hrm::cycles;
  const Kernel kernel = kernel_for(problem->head_dim);
  if (!kernel) return "it supports head_dim 32, 64 and 128";
  if (problem->positions > kKeys) return "it supports 128 positions at most";
  if (problem->width % kSlice || problem->inner % kSlice || problem->heads * problem->head_dim % kSlice) {
    return "the hidden size, the inner size and heads * head_dim must be multiples of 128";
  }
  if (problem->H_layers > HRM_MAX_LAYERS || problem->L_layers > HRM_MAX_LAYERS) {
    return "it supports 16 blocks per module at most";
  }
  const char* reason = nullptr;
  resident_blocks(kernel, &reason);
  return reason;
}

size_t hrm_cuda_recurrent_cycles_workspace(const hrm_recurrent_cycles* problem) {
  return hrm::cycles::lay_out(*problem, nullptr);
}

const char* hrm_cuda_recurrent_cycles(const hrm_recurrent_cycles* problem, void* stream) {
  using namespace hrm::cycles;
  Cycles cycles{};
  cycles.problem = *problem;
  cycles.rows = problem->batch * problem->positions;
  lay_out(*problem, &cycles);
  // tall tiles read less; use them only if there are enough to keep most multiprocessors busy
  cycles.tall = divide_up(cycles.rows, kTallRows) * (problem->width / kTallColumns) >= 96;
  const Kernel kernel = kernel_for(problem->head_dim);
  const char* reason = nullptr;
  const int resident = resident_blocks(kernel, &reason);
  if (reason) return reason;
  // at most as many thread blocks as the largest phase has tiles: each one makes the barriers longer
  const int tiles = divide_up(cycles.rows, kTallRows) * (problem->inner / (kTallColumns / 2));
  const int blocks = resident < tiles ? resident : tiles;
  const cudaError_t error =
      cudaMemsetAsync(cycles.arrived, kFirstCount & 0xff, sizeof(unsigned), static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return hrm::launch(kernel, dim3(static_cast<unsigned>(blocks)), kThreads, kSharedBytes, true, stream, cycles);
}
