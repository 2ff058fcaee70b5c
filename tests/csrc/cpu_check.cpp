// Every function of the CPU library, forward and backward, against plain loops in double.
//
//   cpu_check avx2     checks one instruction set; prints each result and its error relative to the allowed error
//
// Exit status: 0, 1 if a result is wrong, 2 if this machine cannot run that instruction set. Both sides get inputs
// rounded to the dtype, so differences come only from the kernels and the rounding of their results. Outputs are NaN
// before the call; inputs and outputs end directly before an inaccessible page.
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/team.h"

#if defined(HRM_GEOMETRIES)
namespace hrm {
namespace avx512_geometry {
const hrm_cpu_kernels& table();
}
namespace aarch64_geometry {
const hrm_cpu_kernels& table();
}
}  // namespace hrm
#endif

namespace {

// ---- numbers: matrices in double, and the same for the kernels

struct Matrix {
  int64_t rows, columns;
  std::vector<double> values;

  Matrix(int64_t rows_, int64_t columns_) : rows(rows_), columns(columns_), values(rows_ * columns_) {}
  double& operator()(int64_t row, int64_t column) { return values[row * columns + column]; }
  double operator()(int64_t row, int64_t column) const { return values[row * columns + column]; }
};

// Elements in float32 or bfloat16. alignment: of the first, in bytes; without it, its address is odd.
class Elements {
 public:
  const int dtype;
  const int64_t count;

  Elements(int dtype_, int64_t count_, size_t alignment = 1) : dtype(dtype_), count(count_), bytes_(count_ * width()) {
    const size_t page = sysconf(_SC_PAGESIZE);
    size_ = (bytes_ + alignment + page - 1) / page * page + page;
    base_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + size_ - page, page, PROT_NONE)) std::abort();
    data_ = base_ + (size_ - page - bytes_) / alignment * alignment;
    std::memset(data_, 0xff, bytes_);  // NaN
  }
  Elements(int dtype_, const Matrix& from) : Elements(dtype_, static_cast<int64_t>(from.values.size())) {
    for (int64_t i = 0; i < count; ++i) set(i, from.values[i]);
  }
  Elements(const Elements&) = delete;
  ~Elements() { munmap(base_, size_); }

  void* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }
  double operator[](int64_t i) const {
    uint32_t bits = 0;
    if (dtype == HRM_FLOAT32) {
      std::memcpy(&bits, data_ + 4 * i, 4);
    } else {
      std::memcpy(reinterpret_cast<char*>(&bits) + 2, data_ + 2 * i, 2);  // little-endian: the upper half
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  void set(int64_t i, double number) {
    const float value = static_cast<float>(number);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (dtype == HRM_FLOAT32) {
      std::memcpy(data_ + 4 * i, &bits, 4);
      return;
    }
    if (value == value) bits += 0x7fff + (bits >> 16 & 1);  // round to nearest even
    std::memcpy(data_ + 2 * i, reinterpret_cast<char*>(&bits) + 2, 2);
  }
  // The values of the elements.
  Matrix matrix(int64_t rows, int64_t columns) const {
    Matrix result(rows, columns);
    for (int64_t i = 0; i < count; ++i) result.values[i] = (*this)[i];
    return result;
  }

 private:
  size_t width() const { return dtype == HRM_FLOAT32 ? 4 : 2; }

  size_t bytes_, size_;
  char *base_, *data_;
};

// Each check starts it anew: a check that is added or changed does not change the numbers of the others.
std::mt19937 generator;
void start_numbers() { generator.seed(5); }

Matrix random(int64_t rows, int64_t columns, double scale = 1) {
  std::normal_distribution<double> normal(0, scale);
  Matrix result(rows, columns);
  for (double& value : result.values) value = normal(generator);
  return result;
}

// ---- errors

struct Checker {
  std::string about;  // op, dtype, sizes
  int wrong = 0;
  std::map<std::string, std::vector<double>> seen;  // each result, by its name

  void fail(const std::string& name, const std::string& reason) {
    std::printf("WRONG: %s: %s\n", name.c_str(), reason.c_str());
    ++wrong;
  }

  // Checks each element to `tolerance` of the largest, plus rounding for bfloat16. A repeated result must be identical.
  // largest: size of the terms, where they may cancel in all elements.
  void operator()(const char* result, const Elements& got, const Matrix& want, double tolerance, double largest = 0) {
    const std::string name = about + " " + result;
    if (static_cast<int64_t>(want.values.size()) != got.count) return fail(name, "compared with another size");
    for (double value : want.values) largest = std::fmax(largest, std::fabs(value));  // fmax ignores NaN
    double worst = 0;
    int64_t bad = -1, other = -1;
    const auto [first, fresh] = seen.emplace(name, got.matrix(1, got.count).values);
    for (int64_t i = 0; i < got.count; ++i) {
      const double value = want.values[i], before = first->second[i];
      if (got[i] != before && !(std::isnan(got[i]) && std::isnan(before))) other = i;
      if (std::isnan(value) && std::isnan(got[i])) continue;
      const double allowed = tolerance * largest + (got.dtype == HRM_BFLOAT16 ? std::fabs(value) / 256 : 0) +
                             std::numeric_limits<float>::min();
      const double error = std::fabs(got[i] - value) / allowed;
      if (!(error <= 1)) bad = i;  // also true for NaN
      if (error > worst) worst = error;
    }
    if (fresh) std::printf("%s: %.2f\n", name.c_str(), worst);
    std::fflush(stdout);
    if (other >= 0)
      fail(name, "[" + std::to_string(other) + "] is " + std::to_string(got[other]) + ", and " +
                     std::to_string(first->second[other]) + " with another number of threads");
    if (bad >= 0)
      fail(name, "[" + std::to_string(bad) + "] is " + std::to_string(got[bad]) + ", not " +
                     std::to_string(want.values[bad]));
  }
};

constexpr double kTolerance = 2e-6;      // float32 sums of a few hundred terms
constexpr double kPassTolerance = 1e-5;  // of several layers, each of which amplifies earlier errors

// Where intermediate results are bfloat16, a multiple of its rounding, 2^-9: of one attention, or mixing, and of
// several layers. A norm over three features amplifies errors more. (Whether the accuracy is as good as PyTorch's is
// checked in tests/hrm_kernels/test_conformance.py.)
double attention_tolerance(const hrm_cpu_kernels& kernels) {
  return kernels.element_bytes == 2 ? 8 / 512.0 : kTolerance;
}
double pass_tolerance(const hrm_cpu_kernels& kernels, int64_t dim) {
  return kernels.element_bytes == 2 ? (dim > 3 ? 32 : 128) / 512.0 : kPassTolerance;
}

// Memory that kernels reuse between calls; its contents must not matter.
void poison_workspace() {
  constexpr size_t kFloats = 1 << 18;
  std::fill_n(hrm::workspace(kFloats), kFloats, std::numeric_limits<float>::quiet_NaN());
}

constexpr int kThreads[] = {1, 3};
constexpr int kDtypes[] = {HRM_FLOAT32, HRM_BFLOAT16};

std::string described(const char* op, int dtype, std::initializer_list<int64_t> sizes) {
  std::string text = std::string(op) + (dtype == HRM_FLOAT32 ? " float32" : " bfloat16");
  for (int64_t size : sizes) text += " " + std::to_string(size);
  return text;
}

// ---- the mathematics

Matrix transposed(const Matrix& a) {
  Matrix result(a.columns, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.columns; ++j) result(j, i) = a(i, j);
  }
  return result;
}

Matrix times_transposed(const Matrix& a, const Matrix& b) {  // a @ b.T
  Matrix result(a.rows, b.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < b.rows; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < a.columns; ++k) sum += a(i, k) * b(j, k);
      result(i, j) = sum;
    }
  }
  return result;
}

Matrix operator+(Matrix a, const Matrix& b) {
  for (size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
  return a;
}

Matrix inverse_rms(const Matrix& u, double eps) {
  Matrix result(u.rows, 1);
  for (int64_t i = 0; i < u.rows; ++i) {
    double squares = 0;
    for (int64_t j = 0; j < u.columns; ++j) squares += u(i, j) * u(i, j);
    result(i, 0) = 1 / std::sqrt(squares / u.columns + eps);
  }
  return result;
}

Matrix norm(Matrix u, double eps) {
  const Matrix scale = inverse_rms(u, eps);
  for (int64_t i = 0; i < u.rows; ++i) {
    for (int64_t j = 0; j < u.columns; ++j) u(i, j) *= scale(i, 0);
  }
  return u;
}

// du_j = r dy_j - r^3 u_j sum(dy u) / D
Matrix norm_backward(Matrix dy, const Matrix& u, double eps) {
  const Matrix scale = inverse_rms(u, eps);
  for (int64_t i = 0; i < u.rows; ++i) {
    const double r = scale(i, 0);
    double products = 0;
    for (int64_t j = 0; j < u.columns; ++j) products += dy(i, j) * u(i, j);
    for (int64_t j = 0; j < u.columns; ++j) dy(i, j) = r * dy(i, j) - r * r * r * u(i, j) * products / u.columns;
  }
  return dy;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

Matrix swiglu(const Matrix& gate_up) {
  Matrix result(gate_up.rows, gate_up.columns / 2);
  for (int64_t i = 0; i < result.rows; ++i) {
    for (int64_t j = 0; j < result.columns; ++j) {
      const double gate = gate_up(i, j), up = gate_up(i, j + result.columns);
      result(i, j) = gate * sigmoid(gate) * up;
    }
  }
  return result;
}

Matrix swiglu_backward(const Matrix& dout, const Matrix& gate_up) {
  Matrix result(gate_up.rows, gate_up.columns);
  for (int64_t i = 0; i < dout.rows; ++i) {
    for (int64_t j = 0; j < dout.columns; ++j) {
      const double gate = gate_up(i, j), up = gate_up(i, j + dout.columns), s = sigmoid(gate);
      result(i, j) = dout(i, j) * up * (s + gate * s * (1 - s));
      result(i, j + dout.columns) = dout(i, j) * gate * s;
    }
  }
  return result;
}

// cos and sin of the positions, or none.
struct Angles {
  bool there;
  Matrix cos, sin;
};

// Applies RoPE to q and k in qkv [B S, 3 H d], or, for gradients, its transpose.
Matrix turned(Matrix qkv, const hrm_shape& s, const Angles& angles, bool back) {
  const int64_t half = s.head_dim / 2;
  for (int64_t row = 0; angles.there && row < qkv.rows; ++row) {
    const int64_t position = row % s.positions;
    for (int64_t head = 0; head < 2 * s.heads; ++head) {
      for (int64_t i = head * s.head_dim, at = 0; at < half; ++i, ++at) {
        const double low = qkv(row, i), high = qkv(row, i + half);
        const double c = angles.cos(position, at), c2 = angles.cos(position, at + half);
        const double t = angles.sin(position, at), t2 = angles.sin(position, at + half);
        qkv(row, i) = low * c + (back ? high * t2 : -high * t);
        qkv(row, i + half) = high * c2 + (back ? -low * t : low * t2);
      }
    }
  }
  return qkv;
}

struct Attended {
  Matrix out, lse;  // [B S, H d], [B H, S]
};

// Calls each(row of the query, row of the key, probability) for one head; returns the log-sum-exp of each query's
// scores.
template <class Each>
void for_probabilities(const Matrix& qkv, const hrm_shape& s, int64_t batch, int64_t head, Matrix& lse, Each each) {
  const int64_t first = batch * s.positions, q = head * s.head_dim, k = (s.heads + head) * s.head_dim;
  std::vector<double> scores(s.positions);
  for (int64_t row = first; row < first + s.positions; ++row) {
    double most = -INFINITY, total = 0;
    for (int64_t j = 0; j < s.positions; ++j) {
      double dot = 0;
      for (int64_t i = 0; i < s.head_dim; ++i) dot += qkv(row, q + i) * qkv(first + j, k + i);
      scores[j] = dot / std::sqrt(static_cast<double>(s.head_dim));
      most = std::fmax(most, scores[j]);
    }
    for (double& score : scores) total += score = std::exp(score - most);
    lse(batch * s.heads + head, row - first) = most + std::log(total);
    for (int64_t j = 0; j < s.positions; ++j) each(row, first + j, scores[j] / total);
  }
}

Attended attention(const Matrix& given, const hrm_shape& s, const Angles& angles) {
  const Matrix qkv = turned(given, s, angles, false);
  Attended result{Matrix(qkv.rows, s.heads * s.head_dim), Matrix(s.batch * s.heads, s.positions)};
  for (int64_t task = 0; task < s.batch * s.heads; ++task) {
    const int64_t head = task % s.heads, v = (2 * s.heads + head) * s.head_dim;
    for_probabilities(qkv, s, task / s.heads, head, result.lse, [&](int64_t query, int64_t key, double p) {
      for (int64_t i = 0; i < s.head_dim; ++i) result.out(query, head * s.head_dim + i) += p * qkv(key, v + i);
    });
  }
  return result;
}

// out: of the forward, rounded as the kernel gets it
Matrix attention_backward(const Matrix& dout, const Matrix& given, const Matrix& out, const hrm_shape& s,
                          const Angles& angles) {
  const Matrix qkv = turned(given, s, angles, false);
  Matrix dqkv(qkv.rows, qkv.columns), lse(s.batch * s.heads, s.positions);
  for (int64_t task = 0; task < s.batch * s.heads; ++task) {
    const int64_t head = task % s.heads, q = head * s.head_dim, k = q + s.heads * s.head_dim, v = 2 * k - q;
    for_probabilities(qkv, s, task / s.heads, head, lse, [&](int64_t query, int64_t key, double p) {
      double dscore = 0;  // gradient of the softmax: p (dp - sum of p dp), where the sum is dout @ out
      for (int64_t i = 0; i < s.head_dim; ++i) {
        dscore += dout(query, q + i) * (qkv(key, v + i) - out(query, q + i));
        dqkv(key, v + i) += p * dout(query, q + i);
      }
      dscore *= p / std::sqrt(static_cast<double>(s.head_dim));
      for (int64_t i = 0; i < s.head_dim; ++i) {
        dqkv(query, q + i) += dscore * qkv(key, k + i);
        dqkv(key, k + i) += dscore * qkv(query, q + i);
      }
    });
  }
  return turned(dqkv, s, angles, true);
}

struct Weights {
  Matrix qkv{0, 0}, o{0, 0}, gate_up{0, 0}, down{0, 0};
};

// One block, with the values that its backward needs.
struct Block {
  const Weights& weights;
  const hrm_shape& shape;
  const Angles& angles;
  Matrix x, qkv, attended, u1, middle, gate_up, inner, u2, out;

  Block(const Weights& w, const hrm_shape& s, const Angles& a, const Matrix& x_)
      : weights(w),
        shape(s),
        angles(a),
        x(x_),
        qkv(times_transposed(x, w.qkv)),
        attended(attention(qkv, s, a).out),
        u1(x + times_transposed(attended, w.o)),
        middle(norm(u1, s.eps)),
        gate_up(times_transposed(middle, w.gate_up)),
        inner(swiglu(gate_up)),
        u2(middle + times_transposed(inner, w.down)),
        out(norm(u2, s.eps)) {}

  // Returns the gradient of x; stores those of the weights in `gradients`.
  Matrix backward(const Matrix& dout, std::vector<Weights>& gradients) const {
    const Matrix du2 = norm_backward(dout, u2, shape.eps);
    const Matrix dgate_up = swiglu_backward(of_input(du2, weights.down), gate_up);
    gradients.emplace_back();
    gradients.back().down = of_weights(du2, inner);
    return backward_of_swiglu(du2, dgate_up, gradients.back());
  }

  // The same from the gradient of the second sum and that of gate_up; not for `down`.
  Matrix backward_of_swiglu(const Matrix& du2, const Matrix& dgate_up, Weights& gradients) const {
    const Matrix du1 = norm_backward(du2 + of_input(dgate_up, weights.gate_up), u1, shape.eps);
    const Matrix dqkv = attention_backward(of_input(du1, weights.o), qkv, attended, shape, angles);
    gradients.qkv = of_weights(dqkv, x);
    gradients.o = of_weights(du1, attended);
    gradients.gate_up = of_weights(dgate_up, middle);
    return du1 + of_input(dqkv, weights.qkv);
  }

 private:
  static Matrix of_weights(const Matrix& dy, const Matrix& input) {
    return times_transposed(transposed(dy), transposed(input));
  }
  static Matrix of_input(const Matrix& dy, const Matrix& w) { return times_transposed(dy, transposed(w)); }
};

// ---- the checks

Checker check;

void check_add_rms_norm(const hrm_cpu_kernels& kernels, int dtype, int64_t rows, int64_t columns) {
  start_numbers();
  const float eps = 1e-5f;
  const Elements x(dtype, random(rows, columns, 30)), residual(dtype, random(rows, columns));
  const Elements dout(dtype, random(rows, columns));
  const Matrix u = x.matrix(rows, columns) + residual.matrix(rows, columns);
  const Matrix want_rstd = inverse_rms(u, eps), want = norm(u, eps);
  const Matrix want_du = norm_backward(dout.matrix(rows, columns), u, eps);
  for (int threads : kThreads) {
    const Elements out(dtype, rows * columns), rstd(HRM_FLOAT32, rows), du(dtype, rows * columns);
    kernels.add_rms_norm_forward(rows, columns, x.data(), residual.data(), eps, out.data(), rstd.floats(), dtype,
                                 threads);
    kernels.add_rms_norm_backward(rows, columns, dout.data(), x.data(), residual.data(), rstd.floats(), du.data(),
                                  dtype, threads);
    check.about = described("add_rms_norm", dtype, {rows, columns});
    check("out", out, want, kTolerance);
    check("rstd", rstd, want_rstd, kTolerance);
    double largest = 0;
    for (int64_t i = 0; i < dout.count; ++i) {
      largest = std::fmax(largest, std::fabs(dout[i]) * want_rstd.values[i / columns]);
    }
    check("du", du, want_du, kTolerance, largest);  // 0 except for eps with one column
  }
}

void check_swiglu(const hrm_cpu_kernels& kernels, int dtype, int64_t rows, int64_t inner) {
  start_numbers();
  Matrix numbers = random(rows, 2 * inner, 3);
  const double special[] = {NAN, 200, -200, 0, 88, -88};  // the limits of exp
  for (int64_t i = 0; i < 6 && 7 * i < inner; ++i) numbers(rows - 1, 7 * i) = special[i];
  const Elements gate_up(dtype, numbers), dout(dtype, random(rows, inner));
  const Matrix given = gate_up.matrix(rows, 2 * inner);
  const Matrix want = swiglu(given), want_gradient = swiglu_backward(dout.matrix(rows, inner), given);
  for (int threads : kThreads) {
    const Elements out(dtype, rows * inner), gradient(dtype, 2 * rows * inner);
    kernels.swiglu_forward(rows, inner, gate_up.data(), out.data(), dtype, threads);
    kernels.swiglu_backward(rows, inner, dout.data(), gate_up.data(), gradient.data(), dtype, threads);
    check.about = described("swiglu", dtype, {rows, inner});
    check("out", out, want, kTolerance);
    check("dgate_up", gradient, want_gradient, kTolerance);
  }
}

// The inside of ConvSwiGLU from y = swiglu(gate_up): silu of the convolution over positions.
Matrix convolved(const Matrix& y, const Elements& weight, const Elements& bias, int64_t positions) {
  Matrix result(y.rows, y.columns);
  for (int64_t row = 0; row < y.rows; ++row) {
    for (int64_t i = 0; i < y.columns; ++i) {
      const double before = row % positions ? y(row - 1, i) : 0;
      const double c = weight[2 * i] * before + weight[2 * i + 1] * y(row, i) + bias[i];
      result(row, i) = c * sigmoid(c);
    }
  }
  return result;
}

// The gradients of a convolution's y, weight [inner, 2] and bias [1, inner].
struct ConvolutionGradients {
  Matrix y, weight, bias;

  ConvolutionGradients(const Matrix& input, const Elements& taps, const Elements& biases, int64_t positions,
                       const Matrix& dout)
      : y(input.rows, input.columns), weight(input.columns, 2), bias(1, input.columns) {
    Matrix dc(input.rows, input.columns);
    for (int64_t row = input.rows; row-- > 0;) {  // the gradient of y needs dc of the next row
      for (int64_t i = 0; i < input.columns; ++i) {
        const double before = row % positions ? input(row - 1, i) : 0;
        const double c = taps[2 * i] * before + taps[2 * i + 1] * input(row, i) + biases[i], s = sigmoid(c);
        dc(row, i) = dout(row, i) * (s + c * s * (1 - s));
        y(row, i) = taps[2 * i + 1] * dc(row, i) + ((row + 1) % positions ? taps[2 * i] * dc(row + 1, i) : 0);
        weight(i, 0) += dc(row, i) * before;
        weight(i, 1) += dc(row, i) * input(row, i);
        bias(0, i) += dc(row, i);
      }
    }
  }
};

void check_conv_swiglu(const hrm_cpu_kernels& kernels, int dtype, int64_t batch, int64_t positions, int64_t inner) {
  start_numbers();
  const int64_t rows = batch * positions;
  const Elements gate_up(dtype, random(rows, 2 * inner)), dout(dtype, random(rows, inner));
  const Elements weight(dtype, random(inner, 2)), bias(dtype, random(1, inner));
  const Matrix y = swiglu(gate_up.matrix(rows, 2 * inner));
  const Matrix want = convolved(y, weight, bias, positions);
  const ConvolutionGradients gradients(y, weight, bias, positions, dout.matrix(rows, inner));
  const Matrix want_gradient = swiglu_backward(gradients.y, gate_up.matrix(rows, 2 * inner));
  for (int threads : kThreads) {
    const Elements out(dtype, rows * inner), gradient(dtype, 2 * rows * inner);
    const Elements got_dweight(dtype, 2 * inner), got_dbias(dtype, inner);
    kernels.conv_swiglu_forward(batch, positions, inner, gate_up.data(), weight.data(), bias.data(), out.data(), dtype,
                                threads);
    poison_workspace();
    kernels.conv_swiglu_backward(batch, positions, inner, dout.data(), gate_up.data(), weight.data(), bias.data(),
                                 gradient.data(), got_dweight.data(), got_dbias.data(), dtype, threads);
    check.about = described("conv_swiglu", dtype, {batch, positions, inner});
    check("out", out, want, kTolerance);
    check("dgate_up", gradient, want_gradient, kTolerance);
    check("dweight", got_dweight, gradients.weight, kTolerance, 1);  // 0 for the position before the only one
    check("dbias", got_dbias, gradients.bias, kTolerance);
  }
}

void check_linear(const hrm_cpu_kernels& kernels, int dtype, int64_t rows, int64_t outputs, int64_t inputs) {
  start_numbers();
  const Elements x(dtype, random(rows, inputs)), bias(dtype, random(1, outputs));
  const Elements weights(dtype, random(outputs, inputs, 1 / std::sqrt(inputs)));
  const Elements packed(HRM_FLOAT32, kernels.linear_packed_size(outputs, inputs), 64);
  const Matrix product = times_transposed(x.matrix(rows, inputs), weights.matrix(outputs, inputs));
  Matrix sum = product;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < outputs; ++column) sum(row, column) += bias[column];
  }
  for (int threads : kThreads) {
    const Elements out(dtype, rows * outputs), plain(dtype, rows * outputs), alone(dtype, outputs);
    kernels.pack_linear(outputs, inputs, weights.data(), dtype, packed.floats(), threads);
    poison_workspace();
    kernels.linear(rows, outputs, inputs, x.data(), packed.floats(), bias.data(), out.data(), dtype, threads);
    poison_workspace();
    kernels.linear(rows, outputs, inputs, x.data(), packed.floats(), nullptr, plain.data(), dtype, threads);
    check.about = described("linear", dtype, {rows, outputs, inputs});
    check("out", out, sum, kTolerance);
    check("without bias", plain, product, kTolerance);
    const size_t size = dtype == HRM_FLOAT32 ? 4 : 2;  // only the last row: identical bits
    const char* last = static_cast<char*>(x.data()) + (rows - 1) * inputs * size;
    kernels.linear(1, outputs, inputs, last, packed.floats(), bias.data(), alone.data(), dtype, threads);
    if (std::memcmp(alone.data(), static_cast<char*>(out.data()) + (rows - 1) * outputs * size, outputs * size)) {
      check.fail(check.about, "a row depends on its place");
    }
    const Elements unpacked(dtype, rows * outputs);
    poison_workspace();
    kernels.linear_unpacked(rows, outputs, inputs, x.data(), weights.data(), bias.data(), unpacked.data(), dtype,
                            threads);
    if (std::memcmp(unpacked.data(), out.data(), rows * outputs * size)) {
      check.fail(check.about, "packing the weights first changes the result");
    }
  }
}

// A change of any byte changes the checksum; the number of threads does not.
void check_checksum(const hrm_cpu_kernels& kernels, int64_t count) {
  const Elements first(HRM_BFLOAT16, random(1, count)), second(HRM_FLOAT32, random(1, 3));
  const void* arrays[] = {first.data(), second.data()};
  const int64_t bytes[] = {2 * count, 12};
  const auto checksum = [&](int threads) { return kernels.checksum(arrays, bytes, 2, threads); };
  const uint64_t want = checksum(1);
  bool right = want == checksum(3);
  char* data = static_cast<char*>(first.data());
  for (int64_t at = 0; at < 2 * count; at += 1 + count / 50) {
    data[at] ^= 0x80;
    right = right && checksum(2) != want;
    data[at] ^= 0x80;
  }
  if (!right || checksum(2) != want) check.fail(described("checksum", HRM_BFLOAT16, {count}), "it misses a change");
}

void check_token_mixing(const hrm_cpu_kernels& kernels, int dtype, int64_t batch, int64_t positions, int64_t dim,
                        int64_t inner) {
  start_numbers();
  const float eps = 1e-5f;
  const int64_t elements = batch * positions * dim;
  const Elements x(dtype, random(batch * dim, positions)), dout(dtype, random(batch * dim, positions));
  const Elements gate_up(dtype, random(2 * inner, positions, 1 / std::sqrt(positions)));
  const Elements down(dtype, random(positions, inner, 1 / std::sqrt(inner)));
  const Matrix gate_up_weights = gate_up.matrix(2 * inner, positions), down_weights = down.matrix(positions, inner);
  // a row for each channel of each row of the batch, and back
  const auto across = [&](const Matrix& states) {
    Matrix result(batch * dim, positions);
    for (int64_t i = 0; i < elements; ++i) {
      result(i / (positions * dim) * dim + i % dim, i / dim % positions) = states.values[i];
    }
    return result;
  };
  const auto along = [&](const Matrix& rows) {
    Matrix result(batch * positions, dim);
    for (int64_t i = 0; i < elements; ++i) {
      result.values[i] = rows(i / (positions * dim) * dim + i % dim, i / dim % positions);
    }
    return result;
  };
  const Matrix rows = across(x.matrix(batch * positions, dim));
  const Matrix hidden = times_transposed(rows, gate_up_weights), inside = swiglu(hidden);
  const Matrix u = rows + times_transposed(inside, down_weights);
  const Matrix du = norm_backward(across(dout.matrix(batch * positions, dim)), u, eps);
  const Matrix dhidden = swiglu_backward(times_transposed(du, transposed(down_weights)), hidden);
  const Matrix want_dx = along(du + times_transposed(dhidden, transposed(gate_up_weights)));
  for (int threads : kThreads) {
    const Elements out(dtype, elements), dx(dtype, elements);
    const Elements dgate_up(dtype, 2 * inner * positions), ddown(dtype, positions * inner);
    poison_workspace();
    kernels.token_mixing_forward(batch, positions, dim, inner, x.data(), gate_up.data(), down.data(), eps, out.data(),
                                 dtype, threads);
    poison_workspace();
    kernels.token_mixing_backward(batch, positions, dim, inner, dout.data(), x.data(), gate_up.data(), down.data(), eps,
                                  dx.data(), dgate_up.data(), ddown.data(), dtype, threads);
    check.about = described("token_mixing", dtype, {batch, positions, dim, inner});
    const double tolerance = pass_tolerance(kernels, positions);
    check("out", out, along(norm(u, eps)), attention_tolerance(kernels));
    if (positions == 1) continue;  // gradients are 0 except for eps
    check("dx", dx, want_dx, tolerance);
    check("dgate_up", dgate_up, times_transposed(transposed(dhidden), transposed(rows)), tolerance);
    check("ddown", ddown, times_transposed(transposed(du), transposed(inside)), tolerance);
  }
}

// Tables for extra positions, with a different angle in each column (RoPE has equal halves), so that a wrong column
// shows.
Angles some_angles(const hrm_shape& s, bool there) {
  const auto table = [&] {
    Matrix result = random(s.positions + 2, s.head_dim);
    for (double& value : result.values) value = static_cast<float>(std::sin(4 * value));
    return result;
  };
  return {there, table(), table()};
}

void check_rope_attention(const hrm_cpu_kernels& kernels, int dtype, const hrm_shape& s, bool with_angles) {
  start_numbers();
  const int64_t rows = s.batch * s.positions, width = s.heads * s.head_dim;
  const Elements qkv(dtype, random(rows, 3 * width)), dout(dtype, random(rows, width));
  const Angles angles = some_angles(s, with_angles);
  const Elements cos(HRM_FLOAT32, angles.cos), sin(HRM_FLOAT32, angles.sin);
  const float *cosines = with_angles ? cos.floats() : nullptr, *sines = with_angles ? sin.floats() : nullptr;
  const Matrix given = qkv.matrix(rows, 3 * width);
  const Attended want = attention(given, s, angles);
  for (int threads : kThreads) {
    const Elements out(dtype, rows * width), lse(HRM_FLOAT32, rows * s.heads), dqkv(dtype, 3 * rows * width);
    poison_workspace();
    kernels.rope_attention_forward(s, qkv.data(), out.data(), lse.floats(), dtype, cosines, sines, threads);
    poison_workspace();
    kernels.rope_attention_backward(s, dout.data(), qkv.data(), out.data(), lse.floats(), dqkv.data(), dtype, cosines,
                                    sines, threads);
    check.about =
        described(with_angles ? "rope_attention" : "attention", dtype, {s.batch, s.positions, s.heads, s.head_dim});
    check("out", out, want.out, attention_tolerance(kernels));
    check("lse", lse, want.lse, attention_tolerance(kernels));
    check("dqkv", dqkv, attention_backward(dout.matrix(rows, width), given, out.matrix(rows, width), s, angles),
          attention_tolerance(kernels));
  }
}

// The weights of some layers, row-major and packed.
struct Layers {
  const hrm_cpu_kernels& kernels;
  const hrm_shape shape;
  const int dtype;
  const int64_t count;
  std::vector<Weights> matrices;
  std::vector<hrm_weights> pointers;
  std::vector<Elements*> owned;

  Layers(const hrm_cpu_kernels& kernels_, const hrm_shape& s, int dtype_, int64_t count_)
      : kernels(kernels_), shape(s), dtype(dtype_), count(count_) {
    const int64_t wide = s.heads * s.head_dim;
    for (int64_t i = 0; i < count; ++i) {
      const Elements* all[4] = {add(3 * wide, s.dim), add(s.dim, wide), add(2 * s.inner, s.dim), add(s.dim, s.inner)};
      pointers.push_back({all[0]->data(), all[1]->data(), all[2]->data(), all[3]->data()});
      matrices.push_back({all[0]->matrix(3 * wide, s.dim), all[1]->matrix(s.dim, wide),
                          all[2]->matrix(2 * s.inner, s.dim), all[3]->matrix(s.dim, s.inner)});
    }
  }
  Layers(const Layers&) = delete;
  ~Layers() {
    for (Elements* elements : owned) delete elements;
  }

  const Elements* add(int64_t outputs, int64_t inputs) {
    owned.push_back(new Elements(dtype, random(outputs, inputs, 1 / std::sqrt(inputs))));
    return owned.back();
  }
  void pack(const Elements& to, bool backward, int threads) const {
    kernels.pack_blocks(shape, pointers.data(), count, dtype, backward, to.floats(), threads);
  }
  int64_t packed_size() const { return count * kernels.packed_size(shape); }
  std::vector<Block> forward(Matrix x, const Angles& angles) const {
    std::vector<Block> blocks;
    for (const Weights& weights : matrices) {
      blocks.emplace_back(weights, shape, angles, x);
      x = blocks.back().out;
    }
    return blocks;
  }
};

void check_blocks(const hrm_cpu_kernels& kernels, int dtype, const hrm_shape& s, bool with_angles) {
  start_numbers();
  const int64_t rows = s.batch * s.positions, elements = rows * s.dim;
  const Layers layers(kernels, s, dtype, 2);
  const Elements x(dtype, random(rows, s.dim)), injection(dtype, random(rows, s.dim));
  const Elements dout(dtype, random(rows, s.dim));
  const Angles angles = some_angles(s, with_angles);
  const Elements cos(HRM_FLOAT32, angles.cos), sin(HRM_FLOAT32, angles.sin);
  const float *cosines = with_angles ? cos.floats() : nullptr, *sines = with_angles ? sin.floats() : nullptr;

  Matrix start = x.matrix(rows, s.dim);
  if (with_angles) start = start + injection.matrix(rows, s.dim);
  const std::vector<Block> blocks = layers.forward(start, angles);
  std::vector<Weights> want;  // last layer first
  const Matrix middle = blocks[1].backward(dout.matrix(rows, s.dim), want), want_dx = blocks[0].backward(middle, want);

  for (int threads : kThreads) {
    const Elements packed(HRM_FLOAT32, layers.packed_size(), 64), backward(HRM_FLOAT32, layers.packed_size(), 64);
    layers.pack(packed, false, threads);
    layers.pack(backward, true, threads);
    for (int recompute : {0, 1}) {
      const Elements saved(HRM_FLOAT32, kernels.saved_size(s, layers.count, 1, recompute), 64);
      const Elements out(dtype, elements), dx(dtype, elements);
      poison_workspace();
      kernels.blocks_forward(s, packed.floats(), layers.count, 1, x.data(), with_angles ? injection.data() : nullptr,
                             out.data(), dtype, cosines, sines, recompute, saved.floats(), nullptr, threads);
      const int64_t wide = s.heads * s.head_dim;
      const Elements qkv(dtype, 3 * wide * s.dim), o(dtype, s.dim * wide), gate_up(dtype, 2 * s.inner * s.dim);
      const Elements down(dtype, s.dim * s.inner), qkv2(dtype, qkv.count), down2(dtype, down.count);
      const hrm_weight_gradients gradients[2] = {{qkv.data(), o.data(), gate_up.data(), down.data()},
                                                 {qkv2.data(), nullptr, nullptr, down2.data()}};
      poison_workspace();
      kernels.blocks_backward(s, packed.floats(), backward.floats(), layers.count, 1, dout.data(), dx.data(), nullptr,
                              gradients, dtype, cosines, sines, recompute, saved.floats(), threads);
      check.about = described(with_angles ? "blocks" : "blocks without RoPE", dtype,
                              {s.batch, s.positions, s.dim, s.heads, s.head_dim, s.inner});
      check("out", out, blocks[1].out, pass_tolerance(kernels, s.dim));
      check("dx", dx, want_dx, pass_tolerance(kernels, s.dim));
      check("dqkv of layer 0", qkv, want[1].qkv, pass_tolerance(kernels, s.dim));
      check("do of layer 0", o, want[1].o, pass_tolerance(kernels, s.dim));
      check("dgate_up of layer 0", gate_up, want[1].gate_up, pass_tolerance(kernels, s.dim));
      check("ddown of layer 0", down, want[1].down, pass_tolerance(kernels, s.dim));
      check("dqkv of layer 1", qkv2, want[0].qkv, pass_tolerance(kernels, s.dim));
      check("ddown of layer 1", down2, want[0].down, pass_tolerance(kernels, s.dim));
    }
  }
}

// A number of the noise, as hrm_kernels/noise.py defines it.
double normal(int64_t seed, int64_t step, int64_t position, int64_t feature, uint32_t stream) {
  uint32_t words[4] = {static_cast<uint32_t>(feature / 64 * 16 + feature % 16), static_cast<uint32_t>(position),
                       static_cast<uint32_t>(step), stream};
  uint32_t key = static_cast<uint32_t>(seed), other_key = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  for (int round = 0; round < 10; ++round, key += 0x9E3779B9, other_key += 0xBB67AE85) {
    const uint64_t first = uint64_t{words[0]} * 0xD2511F53, second = uint64_t{words[2]} * 0xCD9E8D57;
    words[0] = static_cast<uint32_t>(second >> 32) ^ words[1] ^ key;
    words[2] = static_cast<uint32_t>(first >> 32) ^ words[3] ^ other_key;
    words[1] = static_cast<uint32_t>(second);
    words[3] = static_cast<uint32_t>(first);
  }
  const int64_t word = feature % 64 / 16;
  const uint32_t* pair = words + word / 2 * 2;
  const auto uniform = [](uint32_t bits) { return (static_cast<double>(bits >> 9) + 0.5) / 8388608; };
  const double angle = 2 * std::acos(-1.0) * uniform(pair[1]);
  return std::sqrt(-2 * std::log(uniform(pair[0]))) * (word % 2 ? std::sin(angle) : std::cos(angle));
}

std::vector<int64_t> some_seeds(int64_t count) {
  std::vector<int64_t> seeds;
  for (int64_t i = 0; i < count; ++i) seeds.push_back((i % 2 ? -1 : 1) * (i * 0x123456789abcdef + 7));
  return seeds;
}

void check_noise(const hrm_cpu_kernels& kernels, int dtype, int64_t batch, int64_t positions, int64_t dim) {
  start_numbers();
  const std::vector<int64_t> seeds = some_seeds(batch), steps(batch, 3);
  Matrix want(batch * positions, dim);
  for (int64_t row = 0; row < batch * positions; ++row) {
    for (int64_t d = 0; d < dim; ++d) want(row, d) = normal(seeds[row / positions], 3, row % positions, d, 2);
  }
  for (int threads : kThreads) {
    const Elements out(HRM_FLOAT32, batch * positions * dim);
    kernels.noise(batch, positions, dim, seeds.data(), steps.data(), 2, out.floats(), threads);
    check.about = described("noise", dtype, {batch, positions, dim});
    check("numbers", out, want, kTolerance);
  }
}

// z_L with z_H + x, z_H with z_L, z_L again: a network of two layers and one of one.
void check_updates(const hrm_cpu_kernels& kernels, int dtype, const hrm_shape& s, bool damped) {
  start_numbers();
  const int64_t rows = s.batch * s.positions;
  const Layers H(kernels, s, dtype, 2), L(kernels, s, dtype, 1);
  const Elements z_H(dtype, random(rows, s.dim)), z_L(dtype, random(rows, s.dim)), x(dtype, random(rows, s.dim));
  const Angles angles = some_angles(s, s.head_dim % 2 == 0);
  const Elements cos(HRM_FLOAT32, angles.cos), sin(HRM_FLOAT32, angles.sin);

  Matrix want_H = z_H.matrix(rows, s.dim), want_L = z_L.matrix(rows, s.dim);
  const Matrix input = x.matrix(rows, s.dim);
  const std::vector<int64_t> seeds = some_seeds(s.batch), steps(s.batch, 5);
  std::vector<float> weights;
  for (int64_t b = 0; b < s.batch; ++b) weights.push_back(0.5f + 0.25f / static_cast<float>(b + 1));
  const hrm_damping damping{weights.data(), 0.125f, seeds.data(), steps.data()};
  int64_t number = 0;
  const auto next = [&](const Matrix& z, const Matrix& plain) {
    Matrix result = plain;
    for (int64_t row = 0; damped && row < rows; ++row) {
      const int64_t b = row / s.positions;
      for (int64_t d = 0; d < s.dim; ++d) {
        const double noise = normal(seeds[b], steps[b] + number, row % s.positions, d, 0);
        result(row, d) = (1 - weights[b]) * z(row, d) + weights[b] * plain(row, d) + 0.125 * noise;
      }
    }
    ++number;
    return result;
  };
  want_L = next(want_L, L.forward(want_L + want_H + input, angles).back().out);
  want_H = next(want_H, H.forward(want_H + want_L, angles).back().out);
  want_L = next(want_L, L.forward(want_L + want_H + input, angles).back().out);

  for (int threads : kThreads) {
    const Elements packed_H(HRM_FLOAT32, H.packed_size(), 64), packed_L(HRM_FLOAT32, L.packed_size(), 64);
    H.pack(packed_H, false, threads);
    L.pack(packed_L, false, threads);
    const Elements out_H(dtype, rows * s.dim), out_L(dtype, rows * s.dim);
    const void* const states[3] = {z_H.data(), z_L.data(), x.data()};
    void* const outputs[3] = {out_H.data(), out_L.data(), nullptr};
    const hrm_damping* how = damped ? &damping : nullptr;
    const hrm_update updates[3] = {{1, 0, 2, packed_L.floats(), L.count, how, 0},
                                   {0, 1, -1, packed_H.floats(), H.count, how, 1},
                                   {1, 0, 2, packed_L.floats(), L.count, how, 2}};
    poison_workspace();
    kernels.run_updates(s, updates, 3, states, 3, outputs, dtype, angles.there ? cos.floats() : nullptr,
                        angles.there ? sin.floats() : nullptr, nullptr, threads);
    check.about = described(damped ? "damped run_updates" : "run_updates", dtype,
                            {s.batch, s.positions, s.dim, s.heads, s.head_dim, s.inner});
    check("z_H", out_H, want_H, pass_tolerance(kernels, s.dim));
    check("z_L", out_L, want_L, pass_tolerance(kernels, s.dim));
  }
}

// A block with ConvSwiGLU: what differs from a plain one.
struct ConvBlock {
  const Elements &conv, &bias;
  const Block plain;
  const Matrix inside, u2, out;

  ConvBlock(const Weights& w, const Elements& conv_, const Elements& bias_, const hrm_shape& s, const Angles& a,
            const Matrix& x)
      : conv(conv_),
        bias(bias_),
        plain(w, s, a, x),
        inside(convolved(plain.inner, conv, bias, s.positions)),
        u2(plain.middle + times_transposed(inside, w.down)),
        out(norm(u2, s.eps)) {}

  // Returns the gradient of x; adds those of the weights, of conv [inner, 2] and of bias [1, inner].
  Matrix backward(const Matrix& dout, Weights& of_weights, Matrix& of_conv, Matrix& of_bias) const {
    const Matrix du2 = norm_backward(dout, u2, plain.shape.eps);
    const ConvolutionGradients inner(plain.inner, conv, bias, plain.shape.positions,
                                     times_transposed(du2, transposed(plain.weights.down)));
    of_conv = of_conv + inner.weight;
    of_bias = of_bias + inner.bias;
    Weights own;
    const Matrix dx = plain.backward_of_swiglu(du2, swiglu_backward(inner.y, plain.gate_up), own);
    own.down = times_transposed(transposed(du2), transposed(inside));
    of_weights = {of_weights.qkv + own.qkv, of_weights.o + own.o, of_weights.gate_up + own.gate_up,
                  of_weights.down + own.down};
    return dx;
  }
};

// Two updates of a module of two blocks.
void check_conv_cycles(const hrm_cpu_kernels& kernels, int dtype, const hrm_shape& s) {
  start_numbers();
  const int64_t rows = s.batch * s.positions;
  const Layers layers(kernels, s, dtype, 2);
  const Elements z(dtype, random(rows, s.dim)), injection(dtype, random(rows, s.dim));
  const Elements conv[2] = {{dtype, random(s.inner, 2)}, {dtype, random(s.inner, 2)}};
  const Elements bias[2] = {{dtype, random(1, s.inner)}, {dtype, random(1, s.inner)}};
  const Angles angles = some_angles(s, s.head_dim % 2 == 0);
  const Elements cos(HRM_FLOAT32, angles.cos), sin(HRM_FLOAT32, angles.sin);

  const Elements dout(dtype, random(rows, s.dim));
  std::vector<ConvBlock> blocks;
  blocks.reserve(4);
  Matrix want = z.matrix(rows, s.dim);
  for (int update = 0; update < 2; ++update) {
    want = want + injection.matrix(rows, s.dim);
    for (int layer = 0; layer < 2; ++layer) {
      blocks.emplace_back(layers.matrices[layer], conv[layer], bias[layer], s, angles, want);
      want = blocks.back().out;
    }
  }
  Matrix dx = dout.matrix(rows, s.dim), want_dinjection(rows, s.dim);
  std::vector<Weights> dweights;
  for (const Weights& w : layers.matrices) {
    dweights.push_back({Matrix(w.qkv.rows, w.qkv.columns), Matrix(w.o.rows, w.o.columns),
                        Matrix(w.gate_up.rows, w.gate_up.columns), Matrix(w.down.rows, w.down.columns)});
  }
  Matrix dconv[2] = {{s.inner, 2}, {s.inner, 2}}, dbias[2] = {{1, s.inner}, {1, s.inner}};
  for (int i = 3; i >= 0; --i) {
    dx = blocks[i].backward(dx, dweights[i % 2], dconv[i % 2], dbias[i % 2]);
    if (i % 2 == 0) want_dinjection = want_dinjection + dx;
  }
  const float *cosines = angles.there ? cos.floats() : nullptr, *sines = angles.there ? sin.floats() : nullptr;
  hrm_shape shape = s;
  shape.convolves = true;
  hrm_weights weights[2] = {layers.pointers[0], layers.pointers[1]};
  for (int layer = 0; layer < 2; ++layer) {
    weights[layer].conv = conv[layer].data();
    weights[layer].conv_bias = bias[layer].data();
  }
  for (int threads : kThreads) {
    const Elements packed(HRM_FLOAT32, 2 * kernels.packed_size(shape), 64), backward(HRM_FLOAT32, packed.count, 64);
    kernels.pack_blocks(shape, weights, 2, dtype, false, packed.floats(), threads);
    kernels.pack_blocks(shape, weights, 2, dtype, true, backward.floats(), threads);
    check.about = described("conv_cycles", dtype, {s.batch, s.positions, s.dim, s.heads, s.head_dim, s.inner});
    const double tolerance = pass_tolerance(kernels, s.dim);
    // Gradients of weights are sums over updates, rounded to bfloat16 after each, as PyTorch's are.
    const double of_sums = dtype == HRM_BFLOAT16 ? std::fmax(tolerance, 4 / 512.0) : tolerance;
    const Elements out(dtype, rows * s.dim);
    const hrm_update update{0, 1, -1, packed.floats(), 2};
    const hrm_update updates[2] = {update, update};
    const void* states[2] = {z.data(), injection.data()};
    void* outputs[2] = {out.data(), nullptr};
    poison_workspace();
    kernels.run_updates(shape, updates, 2, states, 2, outputs, dtype, cosines, sines, nullptr, threads);
    check("out", out, want, tolerance);
    for (int recompute : {0, 1}) {
      const Elements saved(HRM_FLOAT32, kernels.saved_size(shape, 2, 2, recompute), 64), again(dtype, rows * s.dim);
      const Elements got_dx(dtype, rows * s.dim), dinjection(dtype, rows * s.dim);
      const Elements gate_up(dtype, 2 * s.inner * s.dim), down(dtype, s.dim * s.inner), taps(dtype, 2 * s.inner);
      const Elements biases(dtype, s.inner);
      hrm_weight_gradients gradients[2] = {{nullptr, nullptr, gate_up.data(), down.data()},
                                           {nullptr, nullptr, nullptr, nullptr}};
      gradients[0].conv = taps.data();
      gradients[1].conv_bias = biases.data();
      poison_workspace();
      kernels.blocks_forward(shape, packed.floats(), 2, 2, z.data(), injection.data(), again.data(), dtype, cosines,
                             sines, recompute, saved.floats(), nullptr, threads);
      poison_workspace();
      kernels.blocks_backward(shape, packed.floats(), backward.floats(), 2, 2, dout.data(), got_dx.data(),
                              dinjection.data(), gradients, dtype, cosines, sines, recompute, saved.floats(), threads);
      check("out with gradients", again, want, tolerance);
      check("dx", got_dx, dx, tolerance);
      check("dinjection", dinjection, want_dinjection, tolerance);
      check("dgate_up of layer 0", gate_up, dweights[0].gate_up, of_sums);
      check("ddown of layer 0", down, dweights[0].down, of_sums);
      check("dconv of layer 0", taps, dconv[0], of_sums, 1);  // 0 for the position before the only one
      check("dbias of layer 1", biases, dbias[1], of_sums);
    }
  }
}

void check_stablemax(const hrm_cpu_kernels& kernels, int dtype, int64_t rows, int64_t vocabulary) {
  start_numbers();
  const int64_t ignored = -100;
  const Elements logits(dtype, random(rows, vocabulary, 20)), dloss(HRM_FLOAT32, random(rows, 1));
  const Matrix x = logits.matrix(rows, vocabulary);
  std::vector<int64_t> labels(rows);
  Matrix want(rows, 1), want_gradient(rows, vocabulary);
  std::vector<int64_t> want_best(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t label = labels[i] = i % 3 == 1 ? ignored : (7 * i) % vocabulary;
    const auto s = [](double value) { return value >= 0 ? value + 1 : 1 / (1 - value); };
    double total = 0;
    for (int64_t j = 0; j < vocabulary; ++j) {
      total += s(x(i, j));
      if (x(i, j) > x(i, want_best[i])) want_best[i] = j;
    }
    if (label == ignored) continue;
    want(i, 0) = std::log(total) - std::log(s(x(i, label)));
    for (int64_t j = 0; j < vocabulary; ++j) {
      const double slope = x(i, j) >= 0 ? 1 : s(x(i, j)) * s(x(i, j));
      want_gradient(i, j) = dloss[i] * slope * (1 / total - (j == label ? 1 / s(x(i, j)) : 0));
    }
  }
  for (int threads : kThreads) {
    const Elements loss(HRM_FLOAT32, rows), gradient(dtype, rows * vocabulary);
    std::vector<double> others(rows, NAN);
    std::vector<int64_t> best(rows, -1);
    kernels.stablemax_forward(rows, vocabulary, logits.data(), labels.data(), ignored, loss.floats(), others.data(),
                              best.data(), dtype, threads);
    kernels.stablemax_backward(rows, vocabulary, dloss.floats(), logits.data(), labels.data(), ignored, others.data(),
                               gradient.data(), dtype, threads);
    check.about = described("stablemax", dtype, {rows, vocabulary});
    check("loss", loss, want, kTolerance);
    check("dlogits", gradient, want_gradient, kTolerance);
    if (best != want_best) check.fail(check.about, "argmax is another");
  }
}

void check_adam_atan2(const hrm_cpu_kernels& kernels, bool with_copies) {
  const std::vector<int64_t> sizes = {1, 7, 32, 1001, (1 << 14) + 5};
  const size_t count = sizes.size();
  const double lr = 0.01, beta1 = 0.9, beta2 = 0.95, weight_decay = 0.1;
  for (int threads : kThreads) {
    start_numbers();
    std::vector<Elements*> p, g, m, v, copies;
    std::vector<Matrix> want_p, want_m, want_v;
    std::vector<double> decay1, decay2;
    for (size_t i = 0; i < count; ++i) {
      Matrix gradient = random(1, sizes[i]), square = random(1, sizes[i]);
      for (int64_t j = 0; j < sizes[i]; ++j) gradient(0, j) *= std::pow(10, j % 9 - 5);  // of every size
      for (double& value : square.values) value *= value;
      gradient(0, 0) = 0;
      p.push_back(new Elements(HRM_FLOAT32, random(1, sizes[i])));
      g.push_back(new Elements(HRM_FLOAT32, gradient));
      m.push_back(new Elements(HRM_FLOAT32, random(1, sizes[i])));
      v.push_back(new Elements(HRM_FLOAT32, square));
      copies.push_back(new Elements(HRM_BFLOAT16, sizes[i]));
      m[i]->set(0, 0);  // with a gradient of 0 there is no step
      v[i]->set(0, 0);
      decay1.push_back(1 - std::pow(beta1, i + 1.0));
      decay2.push_back(1 - std::pow(beta2, i + 1.0));
      want_p.push_back(p[i]->matrix(1, sizes[i]));
      want_m.push_back(m[i]->matrix(1, sizes[i]));
      want_v.push_back(v[i]->matrix(1, sizes[i]));
      for (int64_t j = 0; j < sizes[i]; ++j) {
        double &mean = want_m[i](0, j), &variance = want_v[i](0, j), &value = want_p[i](0, j);
        mean += (1 - beta1) * ((*g[i])[j] - mean);
        variance = beta2 * variance + (1 - beta2) * (*g[i])[j] * (*g[i])[j];
        value = value * (1 - lr * weight_decay) - lr / decay1[i] * std::atan2(mean, std::sqrt(variance / decay2[i]));
      }
    }
    const auto pointers = [](const std::vector<Elements*>& all) {
      std::vector<float*> result;
      for (const Elements* elements : all) result.push_back(elements->floats());
      return result;
    };
    const std::vector<float*> params = pointers(p), grads = pointers(g), means = pointers(m), squares = pointers(v);
    const std::vector<const float*> constant(grads.begin(), grads.end());
    std::vector<void*> narrow;
    for (const Elements* copy : copies) narrow.push_back(copy->data());
    kernels.adam_atan2(static_cast<int64_t>(count), params.data(), constant.data(), means.data(), squares.data(),
                       with_copies ? narrow.data() : nullptr, sizes.data(), decay1.data(), decay2.data(), lr, beta1,
                       beta2, weight_decay, threads);
    for (size_t i = 0; i < count; ++i) {
      check.about = described(with_copies ? "adam_atan2 with copies" : "adam_atan2", HRM_FLOAT32, {sizes[i]});
      check("parameter", *p[i], want_p[i], kTolerance);
      check("exp_avg", *m[i], want_m[i], kTolerance);
      check("exp_avg_sq", *v[i], want_v[i], kTolerance);
      if (with_copies) check("copy", *copies[i], want_p[i], kTolerance);
      for (const Elements* elements : {p[i], g[i], m[i], v[i], copies[i]}) delete elements;
    }
  }
}

// Checks functions that do not depend on the instruction set.
void check_the_rest() {
  const int64_t rows = 9, columns = 5, count = 7;
  const int64_t ids[count] = {3, 8, 3, 0, 8, 3, 1};
  const double lr = 0.01, decay = 0.1;
  const Elements weights(HRM_FLOAT32, random(rows, columns)), gradients(HRM_FLOAT32, random(count, columns));
  Matrix want = weights.matrix(rows, columns);
  for (int64_t id = 0; id < rows; ++id) {
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      bool occurs = false;
      for (int64_t i = 0; i < count; ++i) {
        if (ids[i] == id) sum += gradients[i * columns + j], occurs = true;
      }
      if (occurs) want(id, j) = want(id, j) * (1 - lr * decay) - lr * (sum > 0 ? 1 : -1);
    }
  }
  check.about = "sparse_sign_sgd";
  const int64_t beyond =
      hrm_cpu_sparse_sign_sgd(weights.floats(), rows - 1, columns, ids, gradients.floats(), count, lr, decay);
  if (beyond != 1) check.fail(check.about, "identifier 8 of 8 rows is not seen");
  hrm_cpu_sparse_sign_sgd(weights.floats(), rows, columns, ids, gradients.floats(), count, lr, decay);
  check("weights", weights, want, kTolerance);

  // the sign of a NaN sum is 0
  const Elements row(HRM_FLOAT32, random(1, 2)), unknown(HRM_FLOAT32, 2);
  Matrix decayed = row.matrix(1, 2);
  for (double& value : decayed.values) value *= 1 - lr * decay;
  const int64_t first = 0;
  hrm_cpu_sparse_sign_sgd(row.floats(), 1, 2, &first, unknown.floats(), 1, lr, decay);
  check("weights with a gradient of NaN", row, decayed, kTolerance);

  const Elements x(HRM_FLOAT32, random(1, 19)), y(HRM_FLOAT32, random(1, 19));
  Matrix sum = y.matrix(1, 19);
  for (int64_t i = 0; i < 19; ++i) sum(0, i) += 0.5 * x[i];
  hrm_cpu_axpy(0.5f, x.floats(), y.floats(), 19);
  check.about = "axpy";
  check("y", y, sum, kTolerance);
}

// Every task runs once, on as many threads as the system starts.
void check_team(int threads, int members) {
  std::vector<std::atomic<int>> done(100);
  hrm::parallel(threads, [&](hrm::Team::Member& member) {
    member.for_each(static_cast<int64_t>(done.size()), [&](int64_t task) {
      if (member.rank() < members) ++done[task];
    });
  });
  const bool once = std::all_of(done.begin(), done.end(), [](const std::atomic<int>& times) { return times == 1; });
  if (!once) check.fail(described("team", HRM_FLOAT32, {threads, members}), "a task is not done once");
}

void check_teams() {
  check_team(1, 1);
  check_team(3, 3);
#if defined(__GLIBC__)
  pthread_attr_t before, attributes;  // new threads need more memory than the address space has
  pthread_getattr_default_np(&before);
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, size_t{1} << 50);
  pthread_setattr_default_np(&attributes);
  check_team(3, 1);
  pthread_setattr_default_np(&before);
#endif
}

const hrm_cpu_kernels* named(const std::string& name, int dtype) {
#if defined(HRM_GEOMETRIES)
  const bool avx2 = hrm_cpu("avx2", dtype);
  if (name == "avx512_geometry") return avx2 ? &hrm::avx512_geometry::table() : nullptr;
  if (name == "aarch64_geometry") return &hrm::aarch64_geometry::table();
#endif
  return hrm_cpu(name.c_str(), dtype);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "cpu_check: %d arguments; pass the name of an instruction set\n", count - 1);
    return 2;
  }
  const hrm_cpu_kernels* tables[2] = {named(arguments[1], HRM_FLOAT32), named(arguments[1], HRM_BFLOAT16)};
  if (!tables[0] || !tables[1]) {
    std::fprintf(stderr, "cpu_check: this machine can't run %s\n", arguments[1]);
    return 2;
  }
  for (int dtype : kDtypes) {
    std::printf("%s: panels of %d columns, tiles of %d rows\n", described(arguments[1], dtype, {}).c_str(),
                static_cast<int>(tables[dtype]->panel_width), static_cast<int>(tables[dtype]->tile_rows));
  }
  const hrm_shape shapes[] = {
      // batch, positions, dim, heads, head_dim, inner, eps
      {1, 1, 3, 1, 1, 1, 1e-5f},        // no dimension fills a register
      {2, 5, 20, 2, 6, 10, 1e-5f},      // no dimension fills a panel
      {3, 17, 33, 3, 10, 50, 1e-5f},    // one row or column more than one or two registers
      {2, 48, 64, 2, 32, 96, 1e-5f},    // all dimensions fill whole tiles
      {3, 97, 40, 2, 16, 24, 1e-5f},    // rows and queries beyond whole parts and blocks
      {1, 13, 272, 1, 64, 264, 1e-5f},  // more than a part of 256 of the inner dimension in each product
  };
  for (int dtype : kDtypes) {
    const hrm_cpu_kernels& kernels = *tables[dtype];
    check_token_mixing(kernels, dtype, 1, 1, 3, 1);
    check_token_mixing(kernels, dtype, 2, 5, 20, 10);
    check_token_mixing(kernels, dtype, 3, 48, 64, 96);   // all dimensions fill whole tiles
    check_token_mixing(kernels, dtype, 9, 17, 260, 50);  // 81 pieces of 32 channels: more than a group
    check_noise(kernels, dtype, 2, 3, 5);
    check_noise(kernels, dtype, 3, 17, 200);
    check_conv_swiglu(kernels, dtype, 1, 1, 1);
    check_conv_swiglu(kernels, dtype, 3, 5, 35);
    check_conv_swiglu(kernels, dtype, 2, 65, 530);  // three runs of positions, two tiles of channels
    for (int64_t columns : {1, 3, 16, 31, 100, 1030}) {
      for (int64_t rows : {1, 40}) {
        check_add_rms_norm(kernels, dtype, rows, columns);
        check_swiglu(kernels, dtype, rows, columns);
        check_stablemax(kernels, dtype, rows, columns);
      }
    }
    for (const hrm_shape& shape : shapes) {
      for (bool with_angles : {false, true}) {
        if (with_angles && shape.head_dim % 2) continue;
        check_rope_attention(kernels, dtype, shape, with_angles);
        check_blocks(kernels, dtype, shape, with_angles);
      }
      for (bool damped : {false, true}) check_updates(kernels, dtype, shape, damped);
      check_conv_cycles(kernels, dtype, shape);
    }
  }
  for (int dtype : kDtypes) {
    const hrm_cpu_kernels& kernels = *tables[dtype];
    check_linear(kernels, dtype, 1, 1, 1);
    check_linear(kernels, dtype, 7, 33, 20);
    check_linear(kernels, dtype, 48, 64, 96);     // all dimensions fill whole tiles
    check_linear(kernels, dtype, 100, 530, 300);  // beyond a block of rows, a group of panels, a part of the depth
  }
  for (int64_t elements : {1, 7, 64, 70'000}) check_checksum(*tables[0], elements);
  check_adam_atan2(*tables[0], false);
  check_adam_atan2(*tables[0], true);
  check_the_rest();
  check_teams();
  std::printf("%d results, %d wrong\n", static_cast<int>(check.seen.size()), check.wrong);
  return check.wrong != 0;
}
