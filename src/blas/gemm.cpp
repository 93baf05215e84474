// GEMM on any float type and strides, over the sgemm seam.
#include "blas/gemm.h"

#include <vector>

#include "blas/blas.h"
#include "kernels/half.h"

namespace mlx_ane::blas {

namespace {

/// An fp32 matrix as BLAS takes it.
struct Operand {
  const float* data;
  int64_t ld;
  bool transposed;
};

/// Row-major fp32 copy of a view of any type and strides.
void convert(const MatrixView& x, float* dst) {
  auto data = static_cast<const char*>(x.data);
  auto size = static_cast<int64_t>(size_of(x.type));
  for (int64_t r = 0; r < x.rows; ++r) {
    if (x.col_stride == 1) {
      auto row = data + r * x.row_stride * size;
      kernels::to_float(row, x.type, dst + r * x.cols, x.cols);
      continue;
    }
    for (int64_t c = 0; c < x.cols; ++c) {
      auto at = data + (r * x.row_stride + c * x.col_stride) * size;
      kernels::to_float(at, x.type, dst + r * x.cols + c, 1);
    }
  }
}

/// The view itself where BLAS can read it, else a copy in `scratch`.
Operand operand(const MatrixView& x, std::vector<float>& scratch) {
  if (x.type == Float::f32) {
    auto data = static_cast<const float*>(x.data);
    if (x.col_stride == 1 && x.row_stride >= x.cols) {
      return {data, x.row_stride, false};
    }
    if (x.row_stride == 1 && x.col_stride >= x.rows) {
      return {data, x.col_stride, true};
    }
  }
  scratch.resize(static_cast<size_t>(x.rows * x.cols));
  convert(x, scratch.data());
  return {scratch.data(), x.cols, false};
}

}  // namespace

void gemm(
    const MatrixView& a,
    const MatrixView& b,
    const MatrixView* bias,
    const MatrixOut& c) {
  if (c.rows == 0 || c.cols == 0) {
    return;
  }
  int64_t k = a.cols;
  std::vector<float> a_scratch, b_scratch, c_scratch;
  auto out = static_cast<float*>(c.data);
  int64_t ldc = c.row_stride;
  if (c.type != Float::f32 || ldc < c.cols) {
    c_scratch.resize(static_cast<size_t>(c.rows * c.cols));
    out = c_scratch.data();
    ldc = c.cols;
  }
  for (int64_t r = 0; bias != nullptr && r < c.rows; ++r) {
    MatrixView row{bias->data, bias->type, 1, c.cols, 0, bias->col_stride};
    convert(row, out + r * ldc);
  }
  Operand left = operand(a, a_scratch);
  Operand right = operand(b, b_scratch);
  sgemm(
      left.transposed,
      right.transposed,
      c.rows,
      c.cols,
      k,
      1.0f,
      left.data,
      left.ld,
      right.data,
      right.ld,
      bias != nullptr ? 1.0f : 0.0f,
      out,
      ldc);
  for (int64_t r = 0; c.type != Float::f32 && r < c.rows; ++r) {
    auto row = static_cast<char*>(c.data) +
               r * c.row_stride * static_cast<int64_t>(size_of(c.type));
    kernels::from_float(out + r * ldc, c.type, row, c.cols);
  }
}

}  // namespace mlx_ane::blas
