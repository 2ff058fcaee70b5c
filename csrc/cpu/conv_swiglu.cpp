// silu(before * y[t - 1] + now * y[t] + bias) with y = silu(gate) * up, for each channel and position t.
//
// A task is a run of positions of one row of the batch. It walks them a tile of channels at a time, and keeps what the
// next position needs in arrays of the size of a tile: each input is read once and each result written once, but for
// the position before a run, and for the backward the one after it, which are computed again.
#include <algorithm>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/rows.h"
#include "cpu/tables.h"

namespace hrm::HRM_ISA {
namespace {

constexpr int64_t kRun = 32;    // positions of a task
constexpr int64_t kTile = 512;  // channels: the backward's 14 arrays take 28 KB of the first cache

typedef float Channels[kTile];

struct Problem {
  int64_t batch, positions, inner;
  int64_t runs() const { return (positions + kRun - 1) / kRun; }

  // Calls task(index, first row of the batch row, first and last position) for every run.
  template <class Task>
  void for_runs(int threads, Task task) const {
    const int64_t tasks = batch * runs();
    parallel(threads < tasks ? threads : static_cast<int>(tasks), [&](Team::Member& team) {
      team.for_each(tasks, [&](int64_t index) {
        const int64_t first = index % runs() * kRun;
        task(index, index / runs() * positions, first, std::min(first + kRun, positions));
      });
    });
  }
};

// The convolution of a tile of channels.
struct Taps {
  Channels before, now, bias;

  template <class T>
  HRM_INLINE Taps(const T* weight, const T* biases, int64_t channel, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      before[i] = to_float(weight[2 * (channel + i)]);
      now[i] = to_float(weight[2 * (channel + i) + 1]);
      bias[i] = to_float(biases[channel + i]);
    }
  }
};

// y of a position: of its gates and ups.
template <class T>
HRM_INLINE void compute_y(const T* gate, const T* up, int64_t count, float* y) {
  for_lanes(count, [&](auto read, auto write) HRM_ALWAYS {
    const Vec g = read(gate);
    write(y, g * sigmoid(g) * read(up));
  });
}

// Each loop over channels has one exp: with two, too few iterations fit into the processor's window to hide its
// latency.
void forward(int64_t batch, int64_t positions, int64_t inner, const void* gate_up, const void* weight, const void* bias,
             void* out, int dtype, int threads) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const Problem problem{batch, positions, inner};
    problem.for_runs(threads, [&](int64_t, int64_t row, int64_t first, int64_t last) {
      for (int64_t channel = 0; channel < inner; channel += kTile) {
        const int64_t count = std::min(kTile, inner - channel);
        const Taps taps(static_cast<const T*>(weight), static_cast<const T*>(bias), channel, count);
        const T* gates = static_cast<const T*>(gate_up) + row * 2 * inner + channel;
        T* outs = static_cast<T*>(out) + row * inner + channel;
        alignas(64) Channels ys[2] = {};
        float *y_before = ys[0], *y = ys[1];
        const auto activate = [&](int64_t t, float* to) HRM_ALWAYS {
          compute_y(gates + t * 2 * inner, gates + (2 * t + 1) * inner, count, to);
        };
        if (first > 0) activate(first - 1, y_before);
        for (int64_t t = first; t < last; ++t) {
          activate(t, y);
          for_lanes(count, [&](auto read, auto write) HRM_ALWAYS {
            const Vec c = read(taps.before) * read(y_before) + read(taps.now) * read(y) + read(taps.bias);
            write(outs + t * inner, c * sigmoid(c));
          });
          std::swap(y_before, y);
        }
      }
    });
  });
}

// What the backward keeps of a position: dgate = dy slope, dup = dy silu.
struct Position {
  Channels y, silu, slope, dc;
};

// With c the sum inside the last silu: dc[t] = dout[t] silu'(c[t]), dy[t] = now dc[t] + before dc[t + 1], and
// dweight = sum of dc[t] (y[t - 1], y[t]), dbias = sum of dc[t]. So position t completes the gradients of t - 1.
void backward(int64_t batch, int64_t positions, int64_t inner, const void* dout, const void* gate_up,
              const void* weight, const void* bias, void* dgate_up, void* dweight, void* dbias, int dtype,
              int threads) {
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const Problem problem{batch, positions, inner};
    float* sums = workspace(batch * problem.runs() * 3 * inner);  // of each task: for before, now and bias
    problem.for_runs(threads, [&](int64_t index, int64_t row, int64_t first, int64_t last) {
      for (int64_t channel = 0; channel < inner; channel += kTile) {
        const int64_t count = std::min(kTile, inner - channel);
        const Taps taps(static_cast<const T*>(weight), static_cast<const T*>(bias), channel, count);
        const T* gates = static_cast<const T*>(gate_up) + row * 2 * inner + channel;
        const T* douts = static_cast<const T*>(dout) + row * inner + channel;
        T* dgates = static_cast<T*>(dgate_up) + row * 2 * inner + channel;
        alignas(64) Position kept[2] = {};
        alignas(64) Channels total[3] = {};
        Position *before = &kept[0], *now = &kept[1];
        const auto activate = [&](int64_t t, Position* to) HRM_ALWAYS {
          const T* gate = gates + t * 2 * inner;
          for_lanes(count, [&](auto read, auto write) HRM_ALWAYS {
            const Vec g = read(gate), up = read(gate + inner), s = sigmoid(g), silu = g * s;
            write(to->y, silu * up);
            write(to->silu, silu);
            write(to->slope, up * (s + silu * (1.0f - s)));
          });
        };
        if (first > 0) activate(first - 1, before);
        // Up to the position after the run, whose dc is 0 after the last position.
        for (int64_t t = first; t <= last; ++t) {
          if (t < positions) {
            activate(t, now);
            for_lanes(count, [&](auto read, auto write) HRM_ALWAYS {
              const Vec c = read(taps.before) * read(before->y) + read(taps.now) * read(now->y) + read(taps.bias);
              const Vec s = sigmoid(c);
              write(now->dc, read(douts + t * inner) * (s + c * s * (1.0f - s)));
            });
          } else {
            std::fill_n(now->dc, count, 0.0f);
          }
          if (t > first) {
            T* dgate = dgates + (t - 1) * 2 * inner;
            for_lanes(count, [&](auto read, auto write) HRM_ALWAYS {
              const Vec dy = read(taps.now) * read(before->dc) + read(taps.before) * read(now->dc);
              write(dgate, dy * read(before->slope));
              write(dgate + inner, dy * read(before->silu));
            });
          }
          if (t < last) {
            for_lanes(count, [&](auto read, auto write) HRM_ALWAYS {
              const Vec dc = read(now->dc);
              write(total[0], read(total[0]) + dc * read(before->y));
              write(total[1], read(total[1]) + dc * read(now->y));
              write(total[2], read(total[2]) + dc);
            });
          }
          std::swap(before, now);
        }
        for (int i = 0; i < 3; ++i) std::copy_n(total[i], count, sums + (3 * index + i) * inner + channel);
      }
    });
    // The sums of the tasks, in their order.
    const int64_t tiles = (inner + kTile - 1) / kTile;
    parallel(threads < tiles ? threads : static_cast<int>(tiles), [&](Team::Member& team) {
      team.for_each(tiles, [&](int64_t tile) {
        const int64_t channel = tile * kTile, count = std::min(kTile, inner - channel);
        double totals[3][kTile] = {};
        for (int64_t part = 0; part < 3 * batch * problem.runs(); ++part) {
          const float* sum = sums + part * inner + channel;
          for (int64_t i = 0; i < count; ++i) totals[part % 3][i] += sum[i];
        }
        T* dw = static_cast<T*>(dweight) + 2 * channel;
        T* db = static_cast<T*>(dbias) + channel;
        for (int64_t i = 0; i < count; ++i) {
          assign(dw[2 * i], static_cast<float>(totals[0][i]));
          assign(dw[2 * i + 1], static_cast<float>(totals[1][i]));
          assign(db[i], static_cast<float>(totals[2][i]));
        }
      });
    });
  });
}

}  // namespace

void add_conv_swiglu(hrm_cpu_kernels& table) {
  table.conv_swiglu_forward = forward;
  table.conv_swiglu_backward = backward;
}

}  // namespace hrm::HRM_ISA
