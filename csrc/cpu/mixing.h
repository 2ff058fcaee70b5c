// Mixing of positions: a SwiGLU across the positions of each channel, added to its input and normalised over them.
//
// One task computes a piece: kWidth channels over all positions of one row of the batch, [S][kWidth] in memory. It is a
// right factor, with the rows of the weights on the left (strips.h). The task iterates over parts of the inner
// dimension, so that both products and the norm run in the cache. In panels (product.h), the rows of a panel that
// belong to one row of the batch are a piece.
#pragma once

#include <cmath>

#include "cpu/panels.h"
#include "cpu/strips.h"
#include "cpu/team.h"

namespace hrm::HRM_ISA {

HRM_INLINE Vec inverse_root(Vec x) {
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = 1.0f / std::sqrt(x[lane]);
  return x;
}

// The three matrices of a mixing, packed for the forward or, transposed, for the backward.
struct MixingStrips {
  Strips gate, up, down;

  int64_t packed() const { return gate.elements() + up.elements() + down.elements(); }
  void place(Element* memory) {
    for (Strips* strips : {&gate, &up, &down}) {
      strips->data = memory;
      memory += strips->elements();
    }
  }
  template <class T>
  void pack(const T* gate_up_weights, const T* down_weights, Team::Member& team) const {
    pack_strips<T>({{gate, gate_up_weights}, {up, gate_up_weights}, {down, down_weights}}, team);
  }
};

// Values of the inner dimension of a piece, [I][kWidth] each.
struct Inner {
  Element *gate, *up, *hidden;  // hidden = silu(gate) * up; without gradients it may be the memory of gate

  HRM_INLINE Inner from(int64_t row) const { return {gate + row * kWidth, up + row * kWidth, hidden + row * kWidth}; }

  // Computes `rows` rows of hidden. With gradients, the derivatives of hidden replace gate and up.
  HRM_INLINE void activate(int64_t rows, bool with_gradients) const {
    for (int64_t at = 0; at < rows * kWidth; at += kLanes) {
      const Vec g = load(gate + at), u = load(up + at), s = sigmoid(g), silu = g * s;
      store(hidden + at, silu * u);
      if (!with_gradients) continue;
      store(gate + at, u * (s + silu * (1.0f - s)));
      store(up + at, silu);
    }
  }
};

// The forward of one piece, with gate_up [2 I, S] and down [S, I].
struct Mixer : MixingStrips {
  int64_t positions, inner, part;  // part: rows of the inner dimension that are computed at once
  float eps;

  Mixer(int64_t positions_, int64_t inner_, float eps_)
      : MixingStrips{{inner_, positions_, 0, false},
                     {inner_, positions_, inner_ * positions_, false},
                     {positions_, inner_, 0, false}},
        positions(positions_),
        inner(inner_),
        part(part_rows(inner_)),
        eps(eps_) {}

  int64_t inner_elements() const { return gate.count() * kTileRows * kWidth; }
  int64_t end(int64_t first) const { return first + part < inner ? first + part : inner; }  // of a part

  // Scratch memory of `forward`.
  struct Memory {
    Element *state, *hidden;  // right factors
    Inner part;
    float* sums;
    static int64_t part_elements(const Mixer& mixer) {
      return (mixer.part + kTileRows - 1) / kTileRows * kTileRows * kWidth;
    }
    static int64_t floats(const Mixer& mixer) {
      const int64_t factors = factor_elements(mixer.positions) + factor_elements(mixer.part);
      return floats_for(factors + 2 * part_elements(mixer)) + mixer.down.count() * kTileRows * kWidth;
    }
    Memory(const Mixer& mixer, float* base) {
      Scratch scratch{base};
      state = scratch.elements(factor_elements(mixer.positions));
      hidden = scratch.elements(factor_elements(mixer.part));
      Element *gate = scratch.elements(part_elements(mixer)), *up = scratch.elements(part_elements(mixer));
      part = {gate, up, gate};
      sums = scratch.next;
    }
  };

  // state, a right factor -> rows [first, end(first)) of gate and up, whose memory starts at row `first`
  HRM_INLINE void widen(int64_t first, const Element* state, const Inner& to) const {
    for (int64_t strip = first / kTileRows; strip * kTileRows < end(first); ++strip) {
      const int64_t at = (strip * kTileRows - first) * kWidth;
      Tile tile;
      gate.times(strip, 0, positions, state, tile);
      store_tile(tile, gate.computed(strip), to.gate + at);
      up.times(strip, 0, positions, state, tile);
      store_tile(tile, up.computed(strip), to.up + at);
    }
  }

  // state [S][kWidth] -> y [S][kWidth], which may be the memory of state, and rstd [kWidth]: 1 / rms. saved: hidden and
  // its derivatives, or nullptr.
  HRM_INLINE void forward(const Element* state, float* memory, Element* y, float* rstd, const Inner* saved) const {
    const Memory own(*this, memory);
    const Element* factor = right_factor(state, positions, own.state);
    for (int64_t first = 0; first < inner; first += part) {
      const Inner now = saved ? saved->from(first) : own.part;
      widen(first, factor, now);
      now.activate(end(first) - first, saved);
      const Element* right = right_factor(now.hidden, end(first) - first, own.hidden);
      for (int64_t strip = 0; strip < down.count(); ++strip) {
        Tile tile;
        down.times(strip, first, end(first), right, tile);
        add_tile(tile, own.sums + strip * kTileRows * kWidth, first == 0);
      }
    }
    for (int half = 0; half < 2; ++half) {
      const int64_t start = half * kLanes, stop = positions * kWidth;
      Vec squares{};
      for (int64_t at = start; at < stop; at += kWidth) {
        const Vec sum = load(state + at) + load(own.sums + at);
        squares += sum * sum;
        store(own.sums + at, sum);
      }
      const Vec scale = inverse_root(squares / static_cast<float>(positions) + eps);
      store(rstd + start, scale);
      for (int64_t at = start; at < stop; at += kWidth) store(y + at, load(own.sums + at) * scale);
    }
  }
};

// The backward of one piece; x, y and rstd are those of the forward.
struct MixerGradient : MixingStrips {
  explicit MixerGradient(const Mixer& mixer)
      : MixingStrips{{mixer.positions, mixer.inner, 0, true},
                     {mixer.positions, mixer.inner, mixer.inner * mixer.positions, true},
                     {mixer.inner, mixer.positions, 0, true}} {}

  // Scratch memory of `run`.
  struct Memory {
    Element *x, *du, *dgate, *dup;  // right factors
    float* sums;
    static int64_t floats(const Mixer& mixer) {
      return floats_for(2 * factor_elements(mixer.positions) + 2 * factor_elements(mixer.part)) +
             mixer.down.count() * kTileRows * kWidth;
    }
    Memory(const Mixer& mixer, float* base) {
      Scratch scratch{base};
      x = scratch.elements(factor_elements(mixer.positions));
      du = scratch.elements(factor_elements(mixer.positions));
      dgate = scratch.elements(factor_elements(mixer.part));
      dup = scratch.elements(factor_elements(mixer.part));
      sums = scratch.next;
    }
  };

  // dy -> du in place, with y = u * rstd over the positions. mean(y^2) is 1 - eps * rstd^2, so du = rstd * (dy - p + p
  // * eps * rstd^2) with p, the projection of dy onto y. Rounding of y changes the direction of p, but not its length.
  HRM_INLINE void norm(const Mixer& mixer, const Element* y, const float* rstd, Element* dy) const {
    for (int half = 0; half < 2; ++half) {
      const int64_t first = half * kLanes, end = mixer.positions * kWidth;
      const Vec scale = load(rstd + first);
      Vec products{}, squares{};
      for (int64_t at = first; at < end; at += kWidth) {
        products += load(dy + at) * load(y + at);
        squares += load(y + at) * load(y + at);
      }
      const Vec along = squares > 0.0f ? products / squares : Vec{}, share = scale * scale * mixer.eps;
      for (int64_t at = first; at < end; at += kWidth) {
        const Vec p = load(y + at) * along;
        store(dy + at, (load(dy + at) - p + p * share) * scale);
      }
    }
  }

  // dy -> du in place. values: hidden and its derivatives if they are `known`, else memory for them; the gradients
  // of gate and up replace the derivatives. Calls each(position, lanes [kWidth]) with the gradient of x.
  template <class Each>
  HRM_INLINE void run(const Mixer& mixer, const Element* x, const Element* y, const float* rstd, Element* dy,
                      const Inner& values, bool known, float* memory, Each each) const {
    const Memory own(mixer, memory);
    norm(mixer, y, rstd, dy);
    const Element* from_x = known ? x : right_factor(x, mixer.positions, own.x);
    const Element* du = right_factor(dy, mixer.positions, own.du);
    for (int64_t first = 0; first < mixer.inner; first += mixer.part) {
      const int64_t end = mixer.end(first), rows = end - first;
      const Inner now = values.from(first);
      if (!known) {
        mixer.widen(first, from_x, now);
        now.activate(rows, true);
      }
      hidden(mixer, first, du, now);
      const Element* dgate = right_factor(now.gate, rows, own.dgate);
      const Element* dup = right_factor(now.up, rows, own.dup);
      for (int64_t strip = 0; strip < gate.count(); ++strip) {
        float* sums = own.sums + strip * kTileRows * kWidth;
        Tile tile;
        gate.times(strip, first, end, dgate, tile);
        add_tile(tile, sums, first == 0);
        up.times(strip, first, end, dup, tile);
        add_tile(tile, sums, false);
      }
    }
    for (int64_t s = 0; s < mixer.positions; ++s) {
      float* lanes = own.sums + s * kWidth;
      for (int half = 0; half < kWidth; half += kLanes) {
        store(lanes + half, load(dy + s * kWidth + half) + load(lanes + half));
      }
      each(s, lanes);
    }
  }

 private:
  // Computes rows of the gradients of gate and up: that of hidden, from du, times the derivatives.
  HRM_INLINE void hidden(const Mixer& mixer, int64_t first, const Element* du, const Inner& now) const {
    for (int64_t strip = first / kTileRows; strip * kTileRows < mixer.end(first); ++strip) {
      int64_t at = (strip * kTileRows - first) * kWidth;
      Tile d;
      down.times(strip, 0, mixer.positions, du, d);
      for_rows(d, down.computed(strip), [&](int, Vec* columns) HRM_ALWAYS {
        for (int half = 0; half < 2; ++half, at += kLanes) {
          store(now.gate + at, columns[half] * load(now.gate + at));
          store(now.up + at, columns[half] * load(now.up + at));
        }
      });
    }
  }
};

// Sums the gradients of the weights over pieces, group by group in a fixed order.
//
// Each piece of a group stores its gradients of gate and up and its hidden, [I][kWidth] each: panels of left factors.
// x and du, transposed, are right factors for each panel of positions. The sums, [I][kWidth] for each panel, are the
// gradients of gate, of up, and of down transposed.
struct MixingSums {
  static constexpr int64_t kGroup = 64;                         // memory does not grow with B
  static constexpr int64_t kRows = 72 / kTileRows * kTileRows;  // of a task

  int64_t positions, inner, group, panels, inside;
  Element *left = nullptr, *right = nullptr;
  float* sums = nullptr;

  MixingSums(const Mixer& mixer, int64_t pieces)
      : positions(mixer.positions),
        inner(mixer.inner),
        group(pieces < kGroup ? pieces : kGroup),
        panels(panels_for(positions)),
        inside(mixer.inner_elements()) {}

  int64_t floats() const {
    return floats_for(group * (3 * inside + 2 * panels * kWidth * kWidth)) + 3 * panels * inside;
  }
  void place(float* memory) {
    Scratch scratch{memory};
    left = scratch.elements(group * 3 * inside);                     // [piece][dgate, dup, hidden]
    right = scratch.elements(group * 2 * panels * kWidth * kWidth);  // [x, du][panel][piece]
    sums = scratch.next;                                             // [dgate, dup, ddown][panel]
  }

  Inner values(int64_t piece) const {  // with the gradients of gate and up
    Element* first = left + piece * 3 * inside;
    return {first, first + inside, first + 2 * inside};
  }

  Element* factor(int64_t which, int64_t panel, int64_t piece) const {
    return right + ((which * panels + panel) * group + piece) * kWidth * kWidth;
  }
  FloatPanels sum(int64_t which) const { return {sums + which * panels * inside, inside / kWidth}; }

  void keep(int64_t piece, const Element* x, const Element* du) const {
    const Panels from_x{const_cast<Element*>(x), positions}, from_du{const_cast<Element*>(du), positions};
    for (int64_t panel = 0; panel < panels; ++panel) {
      transpose_panel(from_x, 1, panel * kWidth, positions, factor(0, panel, piece));
      transpose_panel(from_du, 1, panel * kWidth, positions, factor(1, panel, piece));
    }
  }

  // Adds a group of `count` pieces, some rows of one matrix per task. memory: memory_floats.
  static constexpr int64_t memory_floats() { return (kRows + kTileRows) * kWidth; }
  int64_t tasks() const { return 3 * ((inner + kRows - 1) / kRows); }
  void add(int64_t task, int64_t count, bool fresh, float* memory) const {
    const int64_t which = task % 3, first = task / 3 * kRows;
    const int64_t rows = inner - first < kRows ? inner - first : kRows;
    const Panels rows_of_pieces{left + which * inside + first * kWidth, 3 * inside / kWidth};
    for (int64_t panel = 0; panel < panels; ++panel) {
      product<kPartialPanels>(rows_of_pieces, count, factor(which / 2, panel, 0), 1, rows, memory,
                              add_to(sum(which).from(panel, first), fresh));
    }
  }

  // Writes row `row` of the inner dimension to the gradients of gate_up and down, unless they are nullptr.
  template <class T>
  void write(int64_t row, T* dgate_up, T* ddown) const {
    for (int64_t s = 0; s < positions; ++s) {
      const auto at = [&](int64_t which) { return sum(which).at(s / kWidth, row)[s % kWidth]; };
      if (dgate_up) {
        assign(dgate_up[row * positions + s], at(0));
        assign(dgate_up[(inner + row) * positions + s], at(1));
      }
      if (ddown) assign(ddown[s * inner + row], at(2));
    }
  }
};

}  // namespace hrm::HRM_ISA
