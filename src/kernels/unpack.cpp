// Unpacking fp16 surfaces into fp32, with the checks of what a device wrote.
#include <algorithm>
#include <cmath>
#include <vector>

#include "host/half.h"
#include "host/loops.h"
#include "host/scratch.h"
#include "host/streaming.h"
#include "kernels/pack.h"

namespace mlx_ane::kernels {

namespace {

struct FactorUse {};
struct ColumnUse {};
struct ExtremeUse {};
struct PanelUse {};

/// What unpack_transposed takes at a time: whole lines of a column, of no more
/// rows than the TLB has pages; or a panel of pairs.
constexpr int64_t streamed_rows = 512;
constexpr int64_t panel_rows = 32;
constexpr int64_t panel_cols = 256;

/// Products of two powers of two within this bound, and the powers, are exact.
constexpr int exact_exponent = 126;

bool exact(int low, int high) {
  return low >= -exact_exponent && high <= exact_exponent;
}

/// Counts the canaries and non-finite values of one row.
void inspect_row(
    const uint16_t* src,
    int64_t row,
    int64_t cols,
    bool row_finite,
    std::span<const uint8_t> col_finite,
    UnpackReport& report) {
  for (int64_t c = 0; c < cols; ++c) {
    report.canaries += src[c] == host::canary;
    bool expected = row_finite && (col_finite.empty() || col_finite[c]);
    if (expected && (src[c] & 0x7c00) == 0x7c00 && report.nonfinite++ == 0) {
      report.bad_row = row;
      report.bad_col = c;
    }
  }
}

/// Factors 2^-exponent of the columns, or null without exponents, and the range
/// of the exponents.
struct ColumnScales {
  const float* factor = nullptr;
  int low = 0;
  int high = 0;
};

ColumnScales column_scales(std::span<const int16_t> exponents) {
  if (exponents.empty()) {
    return {};
  }
  auto* factor = host::scratch<FactorUse, float>(exponents.size());
  std::transform(exponents.begin(), exponents.end(), factor, [](int exponent) {
    return std::ldexp(1.0f, -exponent);
  });
  auto [low, high] = std::minmax_element(exponents.begin(), exponents.end());
  return {factor, *low, *high};
}

/// One row whose exponents do not fit the exact product of two factors.
void unpack_extreme_row(
    const uint16_t* src,
    int row_exp,
    std::span<const int16_t> col_exp,
    float* y,
    bool accumulate,
    int64_t cols) {
  for (int64_t c = 0; c < cols; ++c) {
    int exponent = row_exp + (col_exp.empty() ? 0 : col_exp[c]);
    float value = std::ldexp(host::half_to_float(src[c]), -exponent);
    y[c] = accumulate ? y[c] + value : value;
  }
}

}  // namespace

UnpackReport unpack(
    const uint16_t* src,
    int64_t ld,
    int64_t rows,
    int64_t cols,
    std::span<const int16_t> row_exp,
    std::span<const int16_t> col_exp,
    std::span<const uint8_t> row_finite,
    std::span<const uint8_t> col_finite,
    float* y,
    int64_t y_ld,
    bool accumulate,
    std::span<uint8_t> row_nonzero,
    std::span<uint8_t> col_nonzero) {
  UnpackReport report;
  auto column = column_scales(col_exp);
  uint16_t* col_bits = nullptr;
  if (!col_nonzero.empty()) {
    col_bits = host::scratch<ColumnUse, uint16_t>(cols);
    std::fill_n(col_bits, cols, uint16_t{0});
  }
  bool stream = !accumulate && host::worth_streaming(y, rows * cols * 4);
  for (int64_t r = 0; r < rows; ++r) {
    const uint16_t* x = src + r * ld;
    int exponent = row_exp.empty() ? 0 : row_exp[r];
    bool fits = exact(column.low, column.high) && exact(exponent, exponent) &&
                exact(exponent + column.low, exponent + column.high);
    // An extreme row still goes through the loop, for what it holds.
    float* out = fits ? y + r * y_ld : host::scratch<ExtremeUse, float>(cols);
    float row_factor = fits ? std::ldexp(1.0f, -exponent) : 1.0f;
    host::HalfRowBits bits = host::loops().unpack_row(
        x,
        row_factor,
        fits ? column.factor : nullptr,
        out,
        accumulate && fits,
        col_bits,
        cols,
        stream && fits);
    if (!fits) {
      unpack_extreme_row(x, exponent, col_exp, y + r * y_ld, accumulate, cols);
    }
    if (bits.canary || bits.nonfinite) {
      bool finite = row_finite.empty() || row_finite[r];
      inspect_row(x, r, cols, finite, col_finite, report);
    }
    if (bits.nonzero && !row_nonzero.empty()) {
      row_nonzero[r] = 1;
    }
  }
  for (int64_t c = 0; col_bits != nullptr && c < cols; ++c) {
    col_nonzero[c] |= col_bits[c] != 0;
  }
  return report;
}

void unpack_transposed(
    const uint16_t* src,
    int64_t ld,
    int64_t rows,
    int64_t cols,
    float* y,
    int64_t y_ld) {
  bool stream = host::worth_streaming(y, rows * cols * 4);
  // Streamed lines go out as they are made; others wait in L1 for their row.
  int64_t height = stream ? streamed_rows : panel_rows;
  int64_t width = stream ? cols : std::min(cols, panel_cols);
  auto panel =
      host::scratch<PanelUse, uint32_t>(panel_rows / 2 * (panel_cols + 64));
  for (int64_t r = 0; r < rows; r += height) {
    int64_t n = std::min(height, rows - r);
    for (int64_t c = 0; c < cols; c += width) {
      host::loops().unpack_columns(
          src + c * ld + r,
          ld,
          n / 2 * 2,
          std::min(width, cols - c),
          y + r * y_ld + c,
          y_ld,
          stream ? nullptr : panel);
    }
    int64_t last = r + n - 1;
    for (int64_t c = 0; n % 2 == 1 && c < cols; ++c) {
      y[last * y_ld + c] = host::half_to_float(src[c * ld + last]);
    }
  }
}

}  // namespace mlx_ane::kernels
