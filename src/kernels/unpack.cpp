// Unpacking fp16 surfaces into fp32, with the checks of what a device wrote.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/half.h"
#include "kernels/loops.h"
#include "kernels/pack.h"
#include "kernels/scratch.h"

namespace mlx_ane::kernels {

namespace {

struct FactorUse {};
struct ColumnUse {};
struct PanelUse {};

constexpr int64_t panel_rows = 128;
constexpr int64_t panel_cols = 2048;

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
    report.canaries += src[c] == canary;
    bool expected = row_finite && (col_finite.empty() || col_finite[c]);
    if (expected && (src[c] & 0x7c00) == 0x7c00 && report.nonfinite++ == 0) {
      report.bad_row = row;
      report.bad_col = c;
    }
  }
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
    float value = std::ldexp(half_to_float(src[c]), -exponent);
    y[c] = accumulate ? y[c] + value : value;
  }
}

/// Pairs of the rows of a tile: panel[i] holds rows 2 i and 2 i + 1. A `cold`
/// tile is fetched some columns ahead of its use.
void read_panel(
    const uint16_t* src,
    int64_t ld,
    int64_t cols,
    int64_t rows,
    uint32_t* panel,
    int64_t panel_ld,
    bool cold) {
  constexpr int64_t step = 32;
  auto fetch = [&](int64_t c) {
    int64_t n = std::clamp<int64_t>(cols - c, 0, step);
    loops().prefetch_columns(src + c * ld, ld, n, cold ? rows * 2 : 0);
  };
  fetch(0);
  for (int64_t c = 0; c < cols; c += step) {
    fetch(c + step);
    loops().transpose_pairs(
        src + c * ld,
        ld,
        std::min(step, cols - c),
        rows / 2,
        reinterpret_cast<uint16_t*>(panel + c),
        2 * panel_ld,
        false,
        {});
  }
}

/// fp32 rows of a panel; the next tile is fetched meanwhile, so that reads and
/// writes overlap.
void write_panel(
    const uint32_t* panel,
    int64_t panel_ld,
    int64_t cols,
    int64_t rows,
    float* y,
    int64_t y_ld,
    bool stream,
    const uint16_t* next,
    int64_t next_ld,
    int64_t next_rows) {
  int64_t share = (cols + rows / 2 - 1) / std::max<int64_t>(rows / 2, 1);
  int64_t fetched = 0;
  for (int64_t i = 0; i + 1 < rows; i += 2) {
    int64_t n = std::min(share, cols - fetched);
    loops().prefetch_columns(
        next + fetched * next_ld, next_ld, n, next_rows * 2);
    fetched += n;
    float* even = y + i * y_ld;
    loops().split_pairs(
        panel + i / 2 * panel_ld, even, even + y_ld, cols, stream);
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
  int low = 0, high = 0;
  float* col_factor = nullptr;
  if (!col_exp.empty()) {
    auto [min, max] = std::minmax_element(col_exp.begin(), col_exp.end());
    low = *min;
    high = *max;
    col_factor = scratch<FactorUse, float>(cols);
    for (int64_t c = 0; c < cols; ++c) {
      col_factor[c] = std::ldexp(1.0f, -col_exp[c]);
    }
  }
  uint16_t* col_bits = nullptr;
  if (!col_nonzero.empty()) {
    col_bits = scratch<ColumnUse, uint16_t>(cols);
    std::fill_n(col_bits, cols, uint16_t{0});
  }
  bool stream = !accumulate && rows * cols * 4 > (int64_t{1} << 21);
  for (int64_t r = 0; r < rows; ++r) {
    const uint16_t* x = src + r * ld;
    int exponent = row_exp.empty() ? 0 : row_exp[r];
    bool fits = exact(low, high) && exact(exponent, exponent) &&
                exact(exponent + low, exponent + high);
    // An extreme row still goes through the loop, for what it holds.
    float* out = fits ? y + r * y_ld : scratch<PanelUse, float>(cols);
    float row_factor = fits ? std::ldexp(1.0f, -exponent) : 1.0f;
    HalfRowBits bits = loops().unpack_row(
        x,
        row_factor,
        fits ? col_factor : nullptr,
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
  bool stream = rows * cols * 4 > (int64_t{512} << 10);
  // An odd number of lines apart, so that a column does not fall on one set.
  int64_t width = std::min(cols, panel_cols);
  int64_t panel_ld = (width + 15) / 16 * 16;
  panel_ld += panel_ld / 16 % 2 == 0 ? 16 : 0;
  auto panel = scratch<PanelUse, uint32_t>(panel_rows / 2 * panel_ld);
  for (int64_t c = 0; c < cols; c += width) {
    width = std::min(width, cols - c);
    for (int64_t r = 0; r < rows; r += panel_rows) {
      int64_t height = std::min(panel_rows, rows - r);
      const uint16_t* tile = src + c * ld + r;
      read_panel(tile, ld, width, height, panel, panel_ld, r == 0);
      int64_t ahead = std::clamp<int64_t>(rows - r - panel_rows, 0, panel_rows);
      write_panel(
          panel,
          panel_ld,
          width,
          height,
          y + r * y_ld + c,
          y_ld,
          stream,
          tile + panel_rows,
          ld,
          ahead);
      for (int64_t i = 0; height % 2 == 1 && i < width; ++i) {
        int64_t last = r + height - 1;
        y[last * y_ld + c + i] = half_to_float(src[(c + i) * ld + last]);
      }
    }
  }
}

}  // namespace mlx_ane::kernels
