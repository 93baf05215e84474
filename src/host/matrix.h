// Views of matrices and half-precision storage that kernels, BLAS and devices
// share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlx_ane {

/// Element types of host matrices. The 16-bit ones are stored as uint16_t.
enum class Float : uint8_t { f32, f16, bf16 };

inline constexpr size_t size_of(Float type) {
  return type == Float::f32 ? 4 : 2;
}

/// Read-only (rows, cols) matrix: element (r, c) is the element at index
/// r * row_stride + c * col_stride of `data`. Strides are in elements, may be 0
/// (broadcast) or negative; no alignment beyond the element's is assumed.
struct MatrixView {
  const void* data = nullptr;
  Float type = Float::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
  int64_t col_stride = 1;

  MatrixView transposed() const {
    return {data, type, cols, rows, col_stride, row_stride};
  }

  MatrixView block(int64_t r, int64_t c, int64_t n_rows, int64_t n_cols) const {
    auto offset =
        (r * row_stride + c * col_stride) * static_cast<int64_t>(size_of(type));
    return {
        static_cast<const char*>(data) + offset,
        type,
        n_rows,
        n_cols,
        row_stride,
        col_stride};
  }
};

/// Writable row-major (rows, cols) matrix; rows are `row_stride` elements
/// apart.
struct MatrixOut {
  void* data = nullptr;
  Float type = Float::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
};

}  // namespace mlx_ane
