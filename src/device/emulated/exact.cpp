// Packs operands into tiles, runs the chip's accumulator and rounds its sums.
#include "device/emulated/exact.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "device/emulated/exact_kernels.h"
#include "host/half.h"
#include "mil/limits.h"

namespace mlx_ane::emulated {

namespace {

const FixedKernels* best_kernels() {
  auto* fast = avx512_kernels();
  return fast ? fast : &portable_kernels();
}

std::atomic<const FixedKernels*> chosen{nullptr};

const FixedKernels& kernels() {
  auto* out = chosen.load();
  return out ? *out : *best_kernels();
}

/// Values as the engine reads them: fp16, exponent 31 being a number like
/// others.
void decode(const float* from, float* to, int64_t n) {
  std::copy_n(from, n, to);
  round_to_half(to, n);
  for (int64_t i = 0; i < n; ++i) {
    auto bits = std::bit_cast<uint32_t>(to[i]);
    bool special = (bits & 0x7f800000) == 0x7f800000;
    // 2^16 (1 + mantissa): the exponent field 255 becomes 127 + 16.
    bits -= special ? (255u - 127 - 16) << 23 : 0;
    to[i] = std::bit_cast<float>(bits);
  }
}

float decode(float value) {
  decode(&value, &value, 1);
  return value;
}

/// The exponent of an fp16 value; those of denormals count as -14.
int exponent_of(float x) {
  auto bits = std::bit_cast<uint32_t>(x);
  return std::max(static_cast<int>(bits >> 23 & 0xff) - 127, -14);
}

/// The smallest |w| whose product with x is kept: exponents add up to -16.
float bound_of(float x) {
  auto least = -16 - exponent_of(x);
  return least > -14 ? std::ldexp(1.0f, least) : 0.0f;
}

/// fp16 of a Q15.16 sum, halves away from zero; -0 does not occur.
float from_fixed(int64_t sum, Numerics numerics) {
  constexpr int64_t limit = int64_t{1} << 31;
  auto magnitude = static_cast<uint64_t>(sum < 0 ? -sum : sum);
  float value = INFINITY;
  if (magnitude < limit) {
    auto shift = std::max(static_cast<int>(std::bit_width(magnitude)) - 11, 0);
    auto kept = (magnitude + (uint64_t{1} << shift >> 1)) >> shift;
    value = std::ldexp(static_cast<float>(kept), shift - 16);
  }
  if (numerics == Numerics::fixed_point_32752 &&
      value > mil::Limits::overflow_from) {
    value = INFINITY;
  }
  return sum < 0 ? -value : value;
}

/// Memory of one thread, kept between calls.
struct Workspace {
  std::vector<float> a, bound;  // (rows up to a tile, k)
  std::vector<float> b;         // (k, tile_cols)
  std::vector<float> line;      // (k)
  std::vector<float> a_norm;    // of rows
  std::vector<int64_t> start;   // of rows
};

Workspace& workspace() {
  static thread_local Workspace out;
  return out;
}

/// op(m) (rows, cols), decoded; transposed, m is (cols, rows).
void decode_matrix(
    const float* m,
    bool transposed,
    int64_t rows,
    int64_t cols,
    std::vector<float>& out) {
  out.resize(rows * cols);
  if (!transposed) {
    decode(m, out.data(), rows * cols);
    return;
  }
  constexpr int64_t tile = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += tile) {
    auto n = std::min(tile, rows - r0);
    for (int64_t c = 0; c < cols; ++c) {
      float line[tile];
      decode(m + c * rows + r0, line, n);
      for (int64_t r = 0; r < n; ++r) {
        out[(r0 + r) * cols + c] = line[r];
      }
    }
  }
}

void pack_rows(const Product& p, const float* a, const float* bias) {
  auto& w = workspace();
  auto rows = (p.m + tile_rows - 1) / tile_rows * tile_rows;
  decode_matrix(a, p.transpose_a, p.m, p.k, w.a);
  w.a.resize(rows * p.k, 0.0f);
  w.bound.assign(rows * p.k, 0.0f);
  w.a_norm.assign(rows, 0.0f);
  w.start.assign(rows, 0);
  for (int64_t i = 0; i < p.m; ++i) {
    double squares = 0;
    for (int64_t j = i * p.k; j < (i + 1) * p.k; ++j) {
      squares += static_cast<double>(w.a[j]) * w.a[j];
      w.bound[j] = bound_of(w.a[j]);
      w.a[j] *= 0x1p16f;
    }
    w.a_norm[i] = static_cast<float>(std::sqrt(squares) * 1.000001);
    w.start[i] = bias ? std::llround(decode(bias[i]) * 65536.0) : 0;
  }
}

/// Columns [from, from + tile_cols) of op(b), padded with zeros; returns the
/// largest norm of one.
float pack_columns(const Product& p, const float* b, int64_t from) {
  auto& panel = workspace().b;
  auto cols = std::min<int64_t>(tile_cols, p.n - from);
  panel.assign(p.k * tile_cols, 0.0f);
  if (p.transpose_b) {
    auto& line = workspace().line;
    line.resize(p.k);
    for (int64_t c = 0; c < cols; ++c) {
      decode(b + (from + c) * p.k, line.data(), p.k);
      for (int64_t k = 0; k < p.k; ++k) {
        panel[k * tile_cols + c] = line[k];
      }
    }
  } else {
    for (int64_t k = 0; k < p.k; ++k) {
      decode(b + k * p.n + from, &panel[k * tile_cols], cols);
    }
  }
  double squares[tile_cols] = {};
  for (int64_t k = 0; k < p.k; ++k) {
    for (int c = 0; c < tile_cols; ++c) {
      double w = panel[k * tile_cols + c];
      squares[c] += w * w;
    }
  }
  auto largest = *std::max_element(squares, squares + tile_cols);
  return static_cast<float>(std::sqrt(largest) * 1.000001);
}

/// Whether no partial sum of a tile can reach 2^31, by Cauchy-Schwarz; every
/// product may be rounded up by half a unit.
bool is_safe(const Product& p, const Workspace& w, int64_t row, float b_norm) {
  double largest = 0, start = 0;
  for (int r = 0; r < tile_rows; ++r) {
    largest = std::max<double>(largest, w.a_norm[row + r]);
    start = std::max(start, std::fabs(static_cast<double>(w.start[row + r])));
  }
  return 65536.0 * largest * b_norm + 0.5 * static_cast<double>(p.k) + start <
         2147483647.0;
}

void multiply_fixed(
    const Product& p,
    const float* a,
    const float* b,
    const float* bias,
    float* c,
    Numerics numerics) {
  auto& kernel = kernels();
  auto& w = workspace();
  pack_rows(p, a, bias);
  for (int64_t col = 0; col < p.n; col += tile_cols) {
    auto b_norm = pack_columns(p, b, col);
    auto cols = std::min<int64_t>(tile_cols, p.n - col);
    for (int64_t row = 0; row < p.m; row += tile_rows) {
      FixedTile tile{
          &w.a[row * p.k], &w.bound[row * p.k], w.b.data(), p.k, &w.start[row]};
      int64_t wide[tile_rows * tile_cols];
      if (is_safe(p, w, row, b_norm)) {
        int32_t sums[tile_rows * tile_cols];
        kernel.fixed(tile, sums);
        std::copy(std::begin(sums), std::end(sums), wide);
      } else {
        kernel.sticky(tile, wide);
      }
      auto rows = std::min<int64_t>(tile_rows, p.m - row);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < cols; ++j) {
          c[(row + r) * p.n + col + j] =
              from_fixed(wide[r * tile_cols + j], numerics);
        }
      }
    }
  }
}

/// fp16 of a value of any size, halves away from zero.
float half_away(double value) {
  if (value == 0 || !std::isfinite(value)) {
    return static_cast<float>(value == 0 ? 0 : value);
  }
  auto unit = std::ldexp(1.0, std::max(std::ilogb(value), -14) - 10);
  auto rounded = std::round(value / unit) * unit;
  return std::fabs(rounded) > 65504 ? std::copysign(INFINITY, rounded)
                                    : static_cast<float>(rounded);
}

// Products are fp16, too small ones are lost; the sum is exact, in units of
// 2^-24, and 0 for good once it reaches 2^15 (MiniMax-H3-Swift, M3 Ultra).
float dot_half_products(const float* x, const float* w, int64_t k, float bias) {
  constexpr int64_t limit = int64_t{1} << 39;
  const auto smallest = std::ldexp(1.0, mil::Limits::log2_min_product);
  auto sum = static_cast<int64_t>(std::ldexp(bias, 24));
  for (int64_t i = 0; i < k; ++i) {
    auto exact = static_cast<double>(x[i]) * w[i];
    if (std::fabs(exact) < smallest) {
      continue;
    }
    auto product = half_away(exact);
    if (!std::isfinite(product)) {
      return 0;
    }
    sum += static_cast<int64_t>(std::ldexp(product, 24));
    if (sum >= limit || sum <= -limit) {
      return 0;
    }
  }
  return half_away(std::ldexp(static_cast<double>(sum), -24));
}

// Four products are summed in fp16, the groups in fp32 (Bryngelson, M1).
float dot_groups_of_four(
    const float* x, const float* w, int64_t k, float bias) {
  float sum = bias;
  for (int64_t i = 0; i < k; i += 4) {
    double group = 0;
    for (auto j = i; j < std::min(i + 4, k); ++j) {
      group += static_cast<double>(x[j]) * w[j];
    }
    sum += host::half_to_float(host::float_to_half(static_cast<float>(group)));
  }
  return host::half_to_float(host::float_to_half(sum));
}

/// c(i, j) = dot(row i of op(a), column j of op(b)), both decoded and dense.
template <class Dot>
void multiply_dots(
    const Product& p,
    const float* a,
    const float* b,
    const float* bias,
    float* c,
    Dot dot) {
  auto& w = workspace();
  decode_matrix(a, p.transpose_a, p.m, p.k, w.a);
  decode_matrix(b, !p.transpose_b, p.n, p.k, w.b);
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      auto y =
          dot(&w.a[i * p.k], &w.b[j * p.k], p.k, bias ? decode(bias[i]) : 0.0f);
      c[i * p.n + j] = y == 0 ? 0.0f : y;
    }
  }
}

}  // namespace

void multiply_exactly(
    const Product& p,
    const float* a,
    const float* b,
    const float* bias,
    float* c,
    Numerics numerics) {
  if (numerics == Numerics::half_products) {
    multiply_dots(p, a, b, bias, c, dot_half_products);
  } else if (numerics == Numerics::groups_of_four) {
    multiply_dots(p, a, b, bias, c, dot_groups_of_four);
  } else {
    multiply_fixed(p, a, b, bias, c, numerics);
  }
}

void set_exact_kernel(const std::string& name) {
  if (name == "portable") {
    chosen = &portable_kernels();
  } else if (name == "avx512" && avx512_kernels()) {
    chosen = avx512_kernels();
  } else {
    throw std::invalid_argument(
        "[mlx_ane.emulated] got kernel \"" + name +
        "\", need \"portable\" or, where the CPU has it, \"avx512\".");
  }
}

}  // namespace mlx_ane::emulated
