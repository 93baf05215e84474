// Rows of a matrix view of any type and strides as contiguous fp32.
#include "host/rows.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <vector>

#include "host/half.h"
#include "host/loops.h"

namespace mlx_ane::host {

namespace {

template <class T, class Convert>
void gather(const MatrixView& x, float* dst, int64_t ld, Convert convert) {
  auto data = static_cast<const T*>(x.data);
  auto copy = [&](int64_t r, int64_t c) {
    dst[r * ld + c] = convert(data[r * x.row_stride + c * x.col_stride]);
  };
  // Read along the shorter stride, in blocks of rows whose lines stay in cache.
  constexpr int64_t block = 32;
  if (std::abs(x.row_stride) >= std::abs(x.col_stride)) {
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t c = 0; c < x.cols; ++c) {
        copy(r, c);
      }
    }
    return;
  }
  for (int64_t start = 0; start < x.rows; start += block) {
    int64_t end = start + block < x.rows ? start + block : x.rows;
    for (int64_t c = 0; c < x.cols; ++c) {
      for (int64_t r = start; r < end; ++r) {
        copy(r, c);
      }
    }
  }
}

}  // namespace

void copy_rows(const MatrixView& x, float* dst, int64_t ld) {
  if (x.col_stride == 1) {
    auto data = static_cast<const char*>(x.data);
    auto row_bytes = x.row_stride * static_cast<int64_t>(size_of(x.type));
    for (int64_t r = 0; r < x.rows; ++r) {
      to_float(data + r * row_bytes, x.type, dst + r * ld, x.cols);
    }
    return;
  }
  switch (x.type) {
    case Float::f32:
      gather<float>(x, dst, ld, [](float f) { return f; });
      break;
    case Float::f16:
      gather<uint16_t>(x, dst, ld, half_to_float);
      break;
    case Float::bf16:
      gather<uint16_t>(x, dst, ld, bfloat_to_float);
      break;
  }
}

float largest(const MatrixView& x) {
  thread_local std::vector<float> row;
  row.resize(static_cast<size_t>(x.cols));
  uint32_t bits = 0;
  for (int64_t r = 0; r < x.rows; ++r) {
    copy_rows(x.block(r, 0, 1, x.cols), row.data(), x.cols);
    bits = std::max(bits, loops().row_norm(row.data(), x.cols).max_bits);
  }
  return std::bit_cast<float>(bits);
}

FloatRows float_rows(const MatrixView& x, float* scratch) {
  if (x.type == Float::f32 && x.col_stride == 1) {
    return {static_cast<const float*>(x.data), x.row_stride};
  }
  copy_rows(x, scratch, x.cols);
  return {scratch, x.cols};
}

}  // namespace mlx_ane::host
