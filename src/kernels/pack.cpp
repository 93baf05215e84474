// Packing into fp16 surfaces: scales, conversion and blocked transposition.
#include "kernels/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/half.h"
#include "kernels/loops.h"
#include "kernels/rows.h"
#include "kernels/scratch.h"

namespace mlx_ane::kernels {

namespace {

/// Rows converted at a time; their fp16 form waits in L2 for transposition.
constexpr int64_t panel_rows = 128;
constexpr int64_t panel_cols = 1024;

/// Stores that bypass the cache pay off once the cache cannot hold the result.
bool worth_streaming(int64_t bytes) {
  return bytes > (int64_t{1} << 20);
}

bool aligned_to_line(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 64 == 0;
}

/// What a row's scale is and what the row holds.
struct RowScale {
  int16_t exponent = 0;
  bool finite = true;
  bool nonzero = false;
};

/// Norm of the row after scaling and rounding to fp16, in double.
double rounded_norm(const float* x, int64_t n, int exponent) {
  double sum = 0.0;
  for (int64_t c = 0; c < n; ++c) {
    double value = half_to_float(float_to_half(std::ldexp(x[c], exponent)));
    sum += value * value;
  }
  return std::sqrt(sum);
}

/// Sum of squares of a row whose largest magnitude is subnormal, as row_norm
/// returns it.
double subnormal_sum(const float* x, int64_t n, int exponent) {
  double sum = 0.0;
  for (int64_t c = 0; c < n; ++c) {
    double value = std::ldexp(static_cast<double>(x[c]), -exponent);
    sum += value * value;
  }
  return sum;
}

RowScale row_scale(const float* x, int64_t n, int log2_norm) {
  RowNorm norm = loops().row_norm(x, n);
  RowScale scale;
  scale.nonzero = norm.max_bits != 0;
  scale.finite = norm.max_bits < 0x7f800000;
  if (!scale.nonzero || !scale.finite) {
    return scale;
  }
  int top = std::ilogb(std::bit_cast<float>(norm.max_bits));
  double sum = top >= -126 && top <= 126 ? norm.sum : subnormal_sum(x, n, top);
  // Largest exponent with sqrt(sum) 2^(top + exponent) <= 2^log2_norm.
  int sum_exponent;
  double fraction = std::frexp(sum, &sum_exponent);
  int exponent = log2_norm - top - (sum_exponent + 1) / 2;
  // Rounding to fp16, and our fp32 sum, move the norm by less than 2^-10: only
  // near a power of four must the rounded values themselves decide.
  constexpr double margin = 0x1p-8;
  bool near_bound =
      sum_exponent % 2 == 0 ? fraction > 1.0 - margin : fraction < 0.5 + margin;
  if (near_bound) {
    double bound = std::ldexp(1.0, log2_norm);
    ++exponent;
    while (rounded_norm(x, n, exponent) > bound) {
      --exponent;
    }
  }
  scale.exponent = static_cast<int16_t>(exponent);
  return scale;
}

/// Sets the scales of rows first .. first + n, whose fp32 values are `rows`.
void measure(
    const FloatRows& rows,
    int64_t first,
    int64_t n,
    int64_t cols,
    int log2_norm,
    RowScales& scales) {
  for (int64_t r = 0; r < n; ++r) {
    RowScale scale = row_scale(rows.data + r * rows.ld, cols, log2_norm);
    auto i = static_cast<size_t>(first + r);
    scales.exponent[i] = scale.exponent;
    scales.finite[i] = scale.finite;
    scales.nonzero[i] = scale.nonzero;
  }
}

RowScales make_scales(int64_t rows) {
  auto n = static_cast<size_t>(rows);
  return {
      std::vector<int16_t>(n),
      std::vector<uint8_t>(n),
      std::vector<uint8_t>(n)};
}

struct RowUse {};
struct PanelUse {};

/// Calls body(first, count, rows) for blocks of rows as fp32; blocks are single
/// rows, so that they stay in L1, unless converting needs more at a time.
template <class Body>
void each_block(const MatrixView& x, Body body) {
  bool row_wise = x.col_stride == 1;
  int64_t block = row_wise ? 1 : 32;
  bool in_place = row_wise && x.type == Float::f32;
  float* buffer = in_place ? nullptr : scratch<RowUse, float>(block * x.cols);
  for (int64_t r = 0; r < x.rows; r += block) {
    int64_t n = std::min(block, x.rows - r);
    body(r, n, float_rows(x.block(r, 0, n, x.cols), buffer));
  }
}

void convert_row(
    const float* x, int exponent, uint16_t* dst, int64_t n, bool stream) {
  if (exponent == 0) {
    loops().float_to_half(x, dst, n, stream);
  } else {
    loops().scale_to_half(x, exponent, dst, n, stream);
  }
}

void zero(uint16_t* dst, int64_t n) {
  if (n > 0) {
    std::memset(dst, 0, static_cast<size_t>(n) * sizeof *dst);
  }
}

void zero_rows(uint16_t* dst, int64_t ld, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    zero(dst + r * ld, cols);
  }
}

/// pack, where `exponent_of(first, n, rows)` returns the exponents of a block.
template <class ExponentOf>
void pack_rows(
    const MatrixView& x,
    ExponentOf exponent_of,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded) {
  bool stream = worth_streaming(x.rows * x.cols * 2);
  each_block(x, [&](int64_t first, int64_t n, const FloatRows& rows) {
    const int16_t* exponent = exponent_of(first, n, rows);
    for (int64_t r = 0; r < n; ++r) {
      uint16_t* out = dst + (first + r) * ld;
      int scale = exponent == nullptr ? 0 : exponent[r];
      convert_row(rows.data + r * rows.ld, scale, out, x.cols, stream);
      zero(out + x.cols, cols_padded - x.cols);
    }
  });
  zero_rows(dst + x.rows * ld, ld, rows_padded - x.rows, cols_padded);
}

/// pack_transposed, with exponents as in pack_rows.
template <class ExponentOf>
void pack_columns(
    const MatrixView& x,
    ExponentOf exponent_of,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded) {
  bool stream = worth_streaming(x.rows * x.cols * 2) && ld % 32 == 0;
  rows_padded = std::max(rows_padded, x.rows);
  // An odd number of lines apart, so that a column does not fall on one set.
  int64_t panel_ld = (x.cols + 31) / 32 * 32;
  panel_ld += panel_ld / 32 % 2 == 0 ? 32 : 0;
  // As many rows as keep the panel in L2, in whole lines of the result.
  int64_t height = std::clamp<int64_t>(
      panel_rows * panel_cols / panel_ld / 32 * 32, 32, panel_rows);
  auto panel = scratch<PanelUse, uint16_t>(height * panel_ld);
  // Elements before the first whole line of dst, where streaming starts.
  int64_t head = stream && !aligned_to_line(dst)
                     ? (64 - reinterpret_cast<uintptr_t>(dst) % 64) / 2
                     : 0;
  int64_t next;
  for (int64_t start = 0; start < rows_padded; start = next) {
    next =
        std::min(start == 0 && head > 0 ? head : start + height, rows_padded);
    int64_t filled = std::clamp<int64_t>(x.rows - start, 0, next - start);
    each_block(
        x.block(start, 0, filled, x.cols),
        [&](int64_t first, int64_t n, const FloatRows& rows) {
          const int16_t* exponent = exponent_of(start + first, n, rows);
          for (int64_t r = 0; r < n; ++r) {
            convert_row(
                rows.data + r * rows.ld,
                exponent == nullptr ? 0 : exponent[r],
                panel + (first + r) * panel_ld,
                x.cols,
                false);
          }
        });
    zero_rows(
        panel + filled * panel_ld, panel_ld, next - start - filled, x.cols);
    bool whole_lines = stream && (start > 0 || head == 0);
    loops().transpose_half(
        panel, panel_ld, next - start, x.cols, dst + start, ld, whole_lines);
  }
  zero_rows(dst + x.cols * ld, ld, cols_padded - x.cols, rows_padded);
}

/// Exponents that the caller gave, or none.
auto given(std::span<const int16_t> exponent) {
  return [exponent](int64_t first, int64_t, const FloatRows&) {
    return exponent.empty() ? nullptr : exponent.data() + first;
  };
}

/// Exponents measured on each block before it is converted.
auto measured(int64_t cols, int log2_norm, RowScales& scales) {
  return [=, &scales](int64_t first, int64_t n, const FloatRows& rows) {
    measure(rows, first, n, cols, log2_norm, scales);
    return scales.exponent.data() + first;
  };
}

}  // namespace

RowScales row_scales(const MatrixView& x, int log2_norm) {
  RowScales scales = make_scales(x.rows);
  each_block(x, [&](int64_t first, int64_t n, const FloatRows& rows) {
    measure(rows, first, n, x.cols, log2_norm, scales);
  });
  return scales;
}

void pack(
    const MatrixView& x,
    std::span<const int16_t> exponent,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded) {
  if (exponent.empty() && x.row_stride == 1 && x.col_stride != 1) {
    pack_columns(
        x.transposed(), given(exponent), dst, ld, cols_padded, rows_padded);
    return;
  }
  bool one_run = exponent.empty() && x.col_stride == 1 &&
                 x.row_stride == x.cols && ld == x.cols &&
                 cols_padded <= x.cols;
  if (one_run) {
    MatrixView run{x.data, x.type, 1, x.rows * x.cols, 0, 1};
    pack_rows(run, given(exponent), dst, ld * x.rows, 1, 0);
    zero_rows(dst + x.rows * ld, ld, rows_padded - x.rows, cols_padded);
    return;
  }
  pack_rows(x, given(exponent), dst, ld, rows_padded, cols_padded);
}

void pack_transposed(
    const MatrixView& x,
    std::span<const int16_t> exponent,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded) {
  if (exponent.empty() && x.row_stride == 1 && x.col_stride != 1) {
    pack(x.transposed(), exponent, dst, ld, cols_padded, rows_padded);
    return;
  }
  pack_columns(x, given(exponent), dst, ld, rows_padded, cols_padded);
}

RowScales pack_scaled(
    const MatrixView& x,
    int log2_norm,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded) {
  RowScales scales = make_scales(x.rows);
  auto exponents = measured(x.cols, log2_norm, scales);
  pack_rows(x, exponents, dst, ld, rows_padded, cols_padded);
  return scales;
}

RowScales pack_scaled_transposed(
    const MatrixView& x,
    int log2_norm,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded) {
  RowScales scales = make_scales(x.rows);
  auto exponents = measured(x.cols, log2_norm, scales);
  pack_columns(x, exponents, dst, ld, rows_padded, cols_padded);
  return scales;
}

}  // namespace mlx_ane::kernels
