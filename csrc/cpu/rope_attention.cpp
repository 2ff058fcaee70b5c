#include "cpu/attention.h"
#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/tables.h"

namespace hrm::HRM_ISA {
namespace {

// Converts a whole [B * S, heads of head_dim] into panels, and back.
struct Packing {
  int64_t rows, stride;
  Columns qkv, out;
  explicit Packing(const hrm_shape& shape)
      : rows(shape.batch * shape.positions),
        stride((rows + kTileRows) | 1),
        qkv{3 * shape.heads, shape.head_dim},
        out{shape.heads, shape.head_dim} {}
};

void forward(hrm_shape shape, const void* qkv, void* out, float* lse, int dtype, const float* cos, const float* sin,
             int threads) {
  const Packing packing(shape);
  Heads heads{{}, shape.positions, shape.heads, shape.head_dim, {cos, sin, shape.head_dim}};
  const int64_t each = heads.forward_scratch();
  Scratch scratch{
      workspace(floats_for((packing.qkv.panels() + packing.out.panels()) * packing.stride * kWidth) + threads * each)};
  heads.qkv = scratch.panels(packing.qkv.panels(), packing.stride);
  const Panels result = scratch.panels(packing.out.panels(), packing.stride);
  parallel(threads, [&](Team::Member& team) {
    const TileScope tiles;
    with_type(dtype, [&](auto type) {
      unpack(static_cast<const decltype(type)*>(qkv), packing.qkv, heads.qkv, packing.rows, team);
    });
    team.for_each(shape.batch * shape.heads, [&](int64_t task) {
      attend(heads, task / shape.heads, task % shape.heads, result, lse, scratch.next + team.rank() * each);
    });
    with_type(dtype,
              [&](auto type) { pack(result, packing.out, static_cast<decltype(type)*>(out), packing.rows, team); });
  });
}

void backward(hrm_shape shape, const void* dout, const void* qkv, const void* out, const float* lse, void* dqkv,
              int dtype, const float* cos, const float* sin, int threads) {
  const Packing packing(shape);
  Heads heads{{}, shape.positions, shape.heads, shape.head_dim, {cos, sin, shape.head_dim}};
  const int64_t each = (heads.backward_scratch() + kWidth - 1) / kWidth * kWidth;
  Scratch scratch{workspace(floats_for(2 * (packing.qkv.panels() + packing.out.panels()) * packing.stride * kWidth) +
                            threads * each)};
  heads.qkv = scratch.panels(packing.qkv.panels(), packing.stride);
  const Panels dresult = scratch.panels(packing.qkv.panels(), packing.stride);
  const Panels given = scratch.panels(packing.out.panels(), packing.stride);
  const Panels result = scratch.panels(packing.out.panels(), packing.stride);
  parallel(threads, [&](Team::Member& team) {
    const TileScope tiles;
    with_type(dtype, [&](auto type) {
      unpack(static_cast<const decltype(type)*>(qkv), packing.qkv, heads.qkv, packing.rows, team);
      unpack(static_cast<const decltype(type)*>(dout), packing.out, given, packing.rows, team);
      unpack(static_cast<const decltype(type)*>(out), packing.out, result, packing.rows, team);
    });
    team.for_each(shape.batch * shape.heads, [&](int64_t task) {
      attend_backward(heads, task / shape.heads, task % shape.heads, given, result, lse, dresult,
                      scratch.next + team.rank() * each);
    });
    with_type(dtype,
              [&](auto type) { pack(dresult, packing.qkv, static_cast<decltype(type)*>(dqkv), packing.rows, team); });
  });
}

}  // namespace

void add_rope_attention(hrm_cpu_kernels& table) {
  table.rope_attention_forward = forward;
  table.rope_attention_backward = backward;
}

}  // namespace hrm::HRM_ISA
