// Packing into fp16 surfaces: scales, conversion and blocked transposition.
#include "kernels/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "host/half.h"
#include "host/loops.h"
#include "host/rows.h"
#include "host/scratch.h"
#include "host/streaming.h"

namespace mlx_ane::kernels {

namespace {

/// Rows converted at a time; their fp16 form waits in L2 for transposition.
constexpr int64_t panel_rows = 128;
constexpr int64_t panel_bytes = 512 << 10;
constexpr int64_t warm_rows = 32;
constexpr int64_t warm_cols = 256;

bool aligned_to_line(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 64 == 0;
}

/// What a row's scale is and what the row holds.
struct RowScale {
  int16_t exponent = 0;
  bool finite = true;
  bool nonzero = false;
};

/// Sum of squares of x * 2^exponent, in double.
double scaled_sum(const float* x, int64_t n, int exponent) {
  double sum = 0.0;
  for (int64_t c = 0; c < n; ++c) {
    double value = std::ldexp(static_cast<double>(x[c]), exponent);
    sum += value * value;
  }
  return sum;
}

/// The norm of x * 2^exponent, each value rounded to fp16, is within
/// 2^log2_norm.
bool fits(const float* x, int64_t n, int exponent, int log2_norm) {
  double bound = std::ldexp(1.0, 2 * log2_norm);
  double sum = host::loops().half_sum_of_squares(x, exponent, n);
  // The fp32 sum decides unless it is as close as its own error.
  if (sum < bound * (1.0 - 0x1p-12) || sum > bound * (1.0 + 0x1p-12)) {
    return sum < bound;
  }
  sum = 0.0;
  for (int64_t c = 0; c < n; ++c) {
    double value =
        host::half_to_float(host::float_to_half(std::ldexp(x[c], exponent)));
    sum += value * value;
  }
  return sum <= bound;
}

RowScale row_scale(const float* x, int64_t n, int log2_norm) {
  host::RowNorm norm = host::loops().row_norm(x, n);
  RowScale scale;
  scale.nonzero = norm.max_bits != 0;
  scale.finite = norm.max_bits < 0x7f800000;
  if (!scale.nonzero || !scale.finite) {
    return scale;
  }
  int top = std::ilogb(std::bit_cast<float>(norm.max_bits));
  double sum = top >= -126 && top <= 126 ? norm.sum : scaled_sum(x, n, -top);
  // Largest exponent with sqrt(sum) 2^(top + exponent) <= 2^log2_norm: sum is
  // in [2^(sum_exponent - 1), 2^sum_exponent).
  int sum_exponent;
  double fraction = std::frexp(sum, &sum_exponent);
  int exponent = log2_norm - top - (sum_exponent + 1) / 2;
  // Rounding to fp16 moves the norm by less than 2^-10: only near a power of
  // four must the rounded values themselves decide.
  constexpr double margin = 0x1p-8;
  bool above = sum_exponent % 2 == 1 && fraction < 0.5 + margin;
  bool below = sum_exponent % 2 == 0 && fraction > 1.0 - margin;
  if (above || below) {
    exponent += above;
    exponent -= !fits(x, n, exponent, log2_norm);
  }
  scale.exponent = static_cast<int16_t>(exponent);
  return scale;
}

/// Sets the scales of rows first .. first + n, whose fp32 values are `rows`.
void measure(
    const host::FloatRows& rows,
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
  float* buffer =
      in_place ? nullptr : host::scratch<RowUse, float>(block * x.cols);
  for (int64_t r = 0; r < x.rows; r += block) {
    int64_t n = std::min(block, x.rows - r);
    body(r, n, host::float_rows(x.block(r, 0, n, x.cols), buffer));
  }
}

void convert_row(
    const float* x, int exponent, uint16_t* dst, int64_t n, bool stream) {
  if (exponent == 0) {
    host::loops().float_to_half(x, dst, n, stream);
  } else {
    host::loops().scale_to_half(x, exponent, dst, n, stream);
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
  bool stream = host::worth_streaming(dst, x.rows * x.cols * 2);
  each_block(x, [&](int64_t first, int64_t n, const host::FloatRows& rows) {
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

/// Rows first .. first + n of x as pairs of halves: panel[i] holds rows 2 i and
/// 2 i + 1; a missing last row is zero.
template <class ExponentOf>
void fill_panel(
    const MatrixView& x,
    int64_t first,
    int64_t n,
    ExponentOf exponent_of,
    uint32_t* panel,
    int64_t panel_ld) {
  bool in_place = x.col_stride == 1 && x.type == Float::f32;
  // Rows that are converted wait in L1; columns need more at a time.
  int64_t block = in_place ? exponent_of.rows : x.col_stride == 1 ? 2 : 32;
  float* buffer =
      in_place ? nullptr : host::scratch<RowUse, float>(block * x.cols);
  for (int64_t r = 0; r < n; r += block) {
    int64_t count = std::min(block, n - r);
    host::FloatRows rows =
        host::float_rows(x.block(first + r, 0, count, x.cols), buffer);
    host::loops().pair_rows(
        rows.data,
        rows.ld,
        count,
        exponent_of(first + r, count, rows),
        panel + r / 2 * panel_ld,
        panel_ld,
        x.cols);
  }
}

/// The rows of the next panel, where they are one run of memory.
host::Prefetch next_panel(const MatrixView& x, int64_t first, int64_t tiles) {
  bool one_run = x.col_stride == 1 && x.row_stride == x.cols;
  if (!one_run || first >= x.rows || tiles == 0) {
    return {};
  }
  auto bytes = std::min<int64_t>(panel_rows, x.rows - first) * x.cols *
               static_cast<int64_t>(size_of(x.type));
  return {
      static_cast<const char*>(x.block(first, 0, 1, 1).data),
      bytes / tiles / 64 * 64};
}

/// Whether pack_columns may and should stream its results.
bool streams_columns(const MatrixView& x, const uint16_t* dst, int64_t ld) {
  return ld % 32 == 0 && host::worth_streaming(dst, x.rows * x.cols * 2);
}

/// pack_transposed, with exponents as in pack_rows.
template <class ExponentOf>
void pack_columns(
    const MatrixView& x,
    ExponentOf exponent_of,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded,
    bool stream) {
  rows_padded = std::max(rows_padded, x.rows);
  // An odd number of lines apart, so that a column does not fall on one set.
  int64_t panel_ld = (x.cols + 15) / 16 * 16;
  panel_ld += panel_ld / 16 % 2 == 0 ? 16 : 0;
  // As many rows as keep the panel in L2, in whole lines of the result.
  int64_t height = std::clamp<int64_t>(
      panel_bytes / (2 * panel_ld) / 32 * 32,
      32,
      stream ? panel_rows : warm_rows);
  auto panel = host::scratch<PanelUse, uint32_t>(height / 2 * panel_ld);
  auto halves = reinterpret_cast<uint16_t*>(panel);
  // Elements before the first whole line of dst, where streaming starts.
  int64_t head = stream && !aligned_to_line(dst)
                     ? (64 - reinterpret_cast<uintptr_t>(dst) % 64) / 2
                     : 0;
  int64_t next;
  for (int64_t start = 0; start < rows_padded; start = next) {
    bool partial_line = start == 0 && head > 0;
    next = std::min(partial_line ? head : start + height, rows_padded);
    int64_t n = next - start;
    int64_t filled = std::clamp<int64_t>(x.rows - start, 0, n);
    fill_panel(x, start, filled, exponent_of, panel, panel_ld);
    for (int64_t i = (filled + 1) / 2; i < (n + 1) / 2; ++i) {
      std::fill_n(panel + i * panel_ld, x.cols, 0u);
    }
    int64_t tiles = (n / 2 + 15) / 16 * ((x.cols + 15) / 16);
    host::loops().transpose_pairs(
        halves,
        2 * panel_ld,
        n / 2,
        x.cols,
        dst + start,
        ld,
        stream && !partial_line,
        stream ? next_panel(x, next, tiles) : host::Prefetch{});
    if (n % 2 == 1) {
      for (int64_t c = 0; c < x.cols; ++c) {
        dst[c * ld + next - 1] = halves[(n / 2 * panel_ld + c) * 2];
      }
    }
  }
  zero_rows(dst + x.cols * ld, ld, cols_padded - x.cols, rows_padded);
}

/// Exponents that the caller gave, or none.
struct Given {
  std::span<const int16_t> exponent;
  /// Rows to ask for at a time.
  static constexpr int64_t rows = panel_rows;
  const int16_t* operator()(
      int64_t first, int64_t, const host::FloatRows&) const {
    return exponent.empty() ? nullptr : exponent.data() + first;
  }
};

/// Exponents measured on each block before it is converted, while it is in L1.
struct Measured {
  int64_t cols;
  int log2_norm;
  RowScales& scales;
  static constexpr int64_t rows = 2;
  const int16_t* operator()(
      int64_t first, int64_t n, const host::FloatRows& block) const {
    measure(block, first, n, cols, log2_norm, scales);
    return scales.exponent.data() + first;
  }
};

}  // namespace

RowScales row_scales(const MatrixView& x, int log2_norm) {
  RowScales scales = make_scales(x.rows);
  each_block(x, [&](int64_t first, int64_t n, const host::FloatRows& rows) {
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
    pack_transposed(x.transposed(), {}, dst, ld, cols_padded, rows_padded);
    return;
  }
  bool one_run = exponent.empty() && x.col_stride == 1 &&
                 x.row_stride == x.cols && ld == x.cols &&
                 cols_padded <= x.cols;
  if (one_run) {
    MatrixView run{x.data, x.type, 1, x.rows * x.cols, 0, 1};
    pack_rows(run, Given{exponent}, dst, ld * x.rows, 1, 0);
    zero_rows(dst + x.rows * ld, ld, rows_padded - x.rows, cols_padded);
    return;
  }
  pack_rows(x, Given{exponent}, dst, ld, rows_padded, cols_padded);
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
  bool stream = streams_columns(x, dst, ld);
  // In a warm cache, a panel that stays in L1 is the fastest.
  int64_t block = stream ? x.cols : warm_cols;
  for (int64_t c = 0; c < x.cols; c += block) {
    auto columns = x.block(0, c, x.rows, std::min(block, x.cols - c));
    pack_columns(
        columns,
        Given{exponent},
        dst + c * ld,
        ld,
        rows_padded,
        columns.cols,
        stream);
  }
  rows_padded = std::max(rows_padded, x.rows);
  zero_rows(dst + x.cols * ld, ld, cols_padded - x.cols, rows_padded);
}

RowScales pack_scaled(
    const MatrixView& x,
    int log2_norm,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded) {
  RowScales scales = make_scales(x.rows);
  Measured exponents{x.cols, log2_norm, scales};
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
  Measured exponents{x.cols, log2_norm, scales};
  bool stream = streams_columns(x, dst, ld);
  pack_columns(x, exponents, dst, ld, rows_padded, cols_padded, stream);
  return scales;
}

}  // namespace mlx_ane::kernels
