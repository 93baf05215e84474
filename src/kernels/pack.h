// Packing of host matrices into fp16 surfaces with a power of two per row, and
// back.
#pragma once

#include <span>
#include <vector>

#include "host/matrix.h"

namespace mlx_ane::kernels {

/// What packing learned of each row.
struct RowScales {
  /// Row r is stored as x * 2^exponent[r].
  std::vector<int16_t> exponent;
  /// Row r holds only finite values.
  std::vector<uint8_t> finite;
  /// Row r holds a non-zero value.
  std::vector<uint8_t> nonzero;
};

/// Exponents such that the L2 norm of every scaled row, after rounding to fp16,
/// is at most 2^log2_norm, and as large as that allows. By Cauchy-Schwarz the
/// products of two such rows then sum to at most 2^(2 log2_norm) in magnitude.
/// Rows with a NaN or inf get exponent 0. Any finite fp32 input is handled.
RowScales row_scales(const MatrixView& x, int log2_norm);

/// dst[r * ld + c] = fp16(x(r, c) * 2^exponent[r]) for c < x.cols, zero for
/// x.cols <= c < cols_padded; rows x.rows <= r < rows_padded are zeroed.
/// An empty `exponent` means no scaling (a straight conversion).
void pack(
    const MatrixView& x,
    std::span<const int16_t> exponent,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded);

/// The same with dst transposed: element (r, c) goes to dst[c * ld + r].
void pack_transposed(
    const MatrixView& x,
    std::span<const int16_t> exponent,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded);

/// row_scales and pack (or pack_transposed) in one read of x.
RowScales pack_scaled(
    const MatrixView& x,
    int log2_norm,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded);
RowScales pack_scaled_transposed(
    const MatrixView& x,
    int log2_norm,
    uint16_t* dst,
    int64_t ld,
    int64_t rows_padded,
    int64_t cols_padded);

/// What unpacking saw in one output tile; indices are of the first offender.
struct UnpackReport {
  int64_t canaries = 0;
  int64_t nonfinite = 0;
  /// First row/col whose value is non-finite although row_ok and col_ok hold.
  int64_t bad_row = -1;
  int64_t bad_col = -1;
};

/// y(r, c) (+)= src[r * ld + c] * 2^-(row_exp[r] + col_exp[c]), in fp32.
/// `row_finite`/`col_finite`: a non-finite value counts only where both hold.
/// `row_nonzero`/`col_nonzero` (size rows/cols, or empty): set to 1 where any
/// value of that row/column is non-zero, so that the caller can probe all-zero
/// ones.
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
    std::span<uint8_t> row_nonzero = {},
    std::span<uint8_t> col_nonzero = {});

/// Straight and transposed conversion fp16 -> fp32, for the channels_first
/// layout: y(r, c) = src[c * ld + r].
void unpack_transposed(
    const uint16_t* src,
    int64_t ld,
    int64_t rows,
    int64_t cols,
    float* y,
    int64_t y_ld);

}  // namespace mlx_ane::kernels
