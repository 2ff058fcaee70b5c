// Mixing of positions as an op of its own, on row-major tensors; mixing.h has the mathematics.
#include "cpu/kernels.h"
#include "cpu/mixing.h"
#include "cpu/tables.h"

namespace hrm::HRM_ISA {
namespace {

struct Sizes {
  int64_t batch, positions, dim;
  int64_t panels() const { return panels_for(dim); }
  int64_t pieces() const { return batch * panels(); }
};

// The location of a piece in x, or in a tensor of its shape, and its number of channels.
struct Piece {
  int64_t start, step, positions, channels;
  Piece(const Sizes& sizes, int64_t index)
      : start(index / sizes.panels() * sizes.positions * sizes.dim + index % sizes.panels() * kWidth),
        step(sizes.dim),
        positions(sizes.positions),
        channels(sizes.dim - index % sizes.panels() * kWidth) {}

  // Loads all positions into to [S][kWidth], with zeros for missing channels.
  template <class T>
  void read(const void* matrix, Element* to) const {
    const T* from = static_cast<const T*>(matrix) + start;
    for (int64_t s = 0; s < positions; ++s, from += step, to += kWidth) {
      if (channels >= kWidth) {
        store(to, load(from));
        store(to + kLanes, load(from + kLanes));
        continue;
      }
      for (int64_t lane = 0; lane < kWidth; ++lane) assign(to[lane], lane < channels ? to_float(from[lane]) : 0.0f);
    }
  }
  // Stores one position from lanes [kWidth].
  template <class T, class From>
  void write(T* matrix, int64_t position, const From* lanes) const {
    T* to = matrix + start + position * step;
    if (channels >= kWidth) {
      store(to, load(lanes));
      store(to + kLanes, load(lanes + kLanes));
      return;
    }
    for (int64_t lane = 0; lane < channels; ++lane) assign(to[lane], to_float(lanes[lane]));
  }
};

void forward(int64_t batch, int64_t positions, int64_t dim, int64_t inner, const void* x, const void* gate_up,
             const void* down, float eps, void* out, int dtype, int threads) {
  const Sizes sizes{batch, positions, dim};
  Mixer mixer(positions, inner, eps);
  const int64_t piece_elements = positions * kWidth;
  const int64_t each = floats_for(2 * piece_elements) + Mixer::Memory::floats(mixer);
  Scratch scratch{workspace(threads * each + floats_for(mixer.packed()))};
  float* memory = scratch.floats(threads * each);
  mixer.place(scratch.elements(mixer.packed()));

  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    parallel(threads, [&](Team::Member& team) {
      const TileScope tiles;
      mixer.pack(static_cast<const T*>(gate_up), static_cast<const T*>(down), team);
      Scratch own{memory + team.rank() * each};
      Element *state = own.elements(piece_elements), *y = own.elements(piece_elements);
      team.for_each(sizes.pieces(), [&](int64_t index) {
        const Piece piece(sizes, index);
        piece.read<T>(x, state);
        float rstd[kWidth];
        mixer.forward(state, own.next, y, rstd, nullptr);
        for (int64_t s = 0; s < positions; ++s) piece.write(static_cast<T*>(out), s, y + s * kWidth);
      });
    });
  });
}

void backward(int64_t batch, int64_t positions, int64_t dim, int64_t inner, const void* dout, const void* x,
              const void* gate_up, const void* down, float eps, void* dx, void* dgate_up, void* ddown, int dtype,
              int threads) {
  const Sizes sizes{batch, positions, dim};
  Mixer mixer(positions, inner, eps);
  MixerGradient gradient(mixer);
  MixingSums sums(mixer, sizes.pieces());
  const int64_t piece_elements = positions * kWidth;
  const int64_t forward_floats = Mixer::Memory::floats(mixer), backward_floats = MixerGradient::Memory::floats(mixer);
  const int64_t both = forward_floats > backward_floats ? forward_floats : backward_floats;
  const int64_t each = floats_for(3 * piece_elements) + both + MixingSums::memory_floats();
  Scratch scratch{workspace(threads * each + floats_for(mixer.packed() + gradient.packed()) + sums.floats())};
  float* memory = scratch.floats(threads * each);
  mixer.place(scratch.elements(mixer.packed()));
  gradient.place(scratch.elements(gradient.packed()));
  sums.place(scratch.next);

  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    parallel(threads, [&](Team::Member& team) {
      const TileScope tiles;
      mixer.pack(static_cast<const T*>(gate_up), static_cast<const T*>(down), team);
      gradient.pack(static_cast<const T*>(gate_up), static_cast<const T*>(down), team);
      Scratch own{memory + team.rank() * each};
      Element *state = own.elements(piece_elements), *y = own.elements(piece_elements);
      Element* du = own.elements(piece_elements);

      const auto differentiate = [&](const Piece& piece, int64_t i) {
        const Inner values = sums.values(i);
        piece.read<T>(x, state);
        piece.read<T>(dout, du);
        float rstd[kWidth];
        mixer.forward(state, own.next, y, rstd, &values);
        gradient.run(mixer, state, y, rstd, du, values, true, own.next,
                     [&](int64_t s, const float* lanes) HRM_ALWAYS { piece.write(static_cast<T*>(dx), s, lanes); });
        sums.keep(i, state, du);
      };

      for (int64_t first = 0; first < sizes.pieces(); first += sums.group) {
        const int64_t count = sizes.pieces() - first < sums.group ? sizes.pieces() - first : sums.group;
        team.for_each(count, [&](int64_t i) { differentiate(Piece(sizes, first + i), i); });
        team.for_each(sums.tasks(), [&](int64_t task) { sums.add(task, count, first == 0, own.next); });
      }
      team.for_each(inner, [&](int64_t row) { sums.write(row, static_cast<T*>(dgate_up), static_cast<T*>(ddown)); });
    });
  });
}

}  // namespace

void add_token_mixing(hrm_cpu_kernels& table) {
  table.token_mixing_forward = forward;
  table.token_mixing_backward = backward;
}

}  // namespace hrm::HRM_ISA
