// Packing into fp16 surfaces and back.
#include "kernels/pack.h"

#include <algorithm>
#include <cmath>

#include "kernels/half.h"

namespace mlx_ane::kernels {

namespace {

float element(const MatrixView& x, int64_t r, int64_t c) {
  int64_t i = r * x.row_stride + c * x.col_stride;
  switch (x.type) {
    case Float::f32:
      return static_cast<const float*>(x.data)[i];
    case Float::f16:
      return half_to_float(static_cast<const uint16_t*>(x.data)[i]);
    default:
      return bfloat_to_float(static_cast<const uint16_t*>(x.data)[i]);
  }
}

double rounded_norm(const MatrixView& x, int64_t r, int exponent) {
  double sum = 0.0;
  for (int64_t c = 0; c < x.cols; ++c) {
    double value =
        half_to_float(float_to_half(std::ldexp(element(x, r, c), exponent)));
    sum += value * value;
  }
  return std::sqrt(sum);
}

} // namespace

RowScales row_scales(const MatrixView& x, int log2_norm) {
  auto rows = static_cast<size_t>(x.rows);
  RowScales scales{
      std::vector<int16_t>(rows, 0),
      std::vector<uint8_t>(rows, 1),
      std::vector<uint8_t>(rows, 0)};
  for (int64_t r = 0; r < x.rows; ++r) {
    double sum = 0.0;
    for (int64_t c = 0; c < x.cols; ++c) {
      double value = element(x, r, c);
      sum += value * value;
    }
    auto i = static_cast<size_t>(r);
    scales.finite[i] = std::isfinite(sum);
    scales.nonzero[i] = sum != 0.0;
    if (sum == 0.0 || !std::isfinite(sum)) {
      continue;
    }
    int exponent = log2_norm - std::ilogb(std::sqrt(sum)) + 1;
    while (rounded_norm(x, r, exponent) > std::ldexp(1.0, log2_norm)) {
      --exponent;
    }
    scales.exponent[i] = static_cast<int16_t>(exponent);
  }
  return scales;
}

void pack(
    const MatrixView& x,
    std::span<const int16_t> exponent,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded) {
  for (int64_t r = 0; r < rows_padded; ++r) {
    uint16_t* row = dst + r * ld;
    int64_t cols = r < x.rows ? x.cols : 0;
    int scale = exponent.empty() || cols == 0 ? 0 : exponent[r];
    for (int64_t c = 0; c < cols; ++c) {
      row[c] = float_to_half(std::ldexp(element(x, r, c), scale));
    }
    std::fill(row + cols, row + std::max(cols, cols_padded), uint16_t{0});
  }
}

void pack_transposed(
    const MatrixView& x,
    std::span<const int16_t> exponent,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded) {
  for (int64_t c = 0; c < cols_padded; ++c) {
    uint16_t* row = dst + c * ld;
    int64_t rows = c < x.cols ? x.rows : 0;
    for (int64_t r = 0; r < rows; ++r) {
      int scale = exponent.empty() ? 0 : exponent[r];
      row[r] = float_to_half(std::ldexp(element(x, r, c), scale));
    }
    std::fill(row + rows, row + std::max(rows, rows_padded), uint16_t{0});
  }
}

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
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      uint16_t half = src[r * ld + c];
      float value = half_to_float(half);
      report.canaries += half == canary;
      bool expected_finite = (row_finite.empty() || row_finite[r]) &&
          (col_finite.empty() || col_finite[c]);
      if (expected_finite && !std::isfinite(value)) {
        if (report.nonfinite++ == 0) {
          report.bad_row = r;
          report.bad_col = c;
        }
      }
      if (value != 0.0f && !row_nonzero.empty()) {
        row_nonzero[r] = 1;
      }
      if (value != 0.0f && !col_nonzero.empty()) {
        col_nonzero[c] = 1;
      }
      int exponent = (row_exp.empty() ? 0 : row_exp[r]) +
          (col_exp.empty() ? 0 : col_exp[c]);
      value = std::ldexp(value, -exponent);
      float* out = y + r * y_ld + c;
      *out = accumulate ? *out + value : value;
    }
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
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      y[r * y_ld + c] = half_to_float(src[c * ld + r]);
    }
  }
}

} // namespace mlx_ane::kernels
