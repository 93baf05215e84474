// Strided copies with merged axes and a blocked transpose; integer conversion.
#include "device/emulated/copy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

namespace mlx_ane::emulated {

StridedCopy::StridedCopy(const Shape& shape, const Shape& strides) {
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 1) {
      continue;
    }
    if (!sizes_.empty() && strides_.back() == strides[d] * shape[d]) {
      sizes_.back() *= shape[d];
      strides_.back() = strides[d];
    } else {
      sizes_.push_back(shape[d]);
      strides_.push_back(strides[d]);
    }
  }
  // Two axes at least, so that the inner pair can be blocked.
  while (sizes_.size() < 2) {
    sizes_.insert(sizes_.begin(), 1);
    strides_.insert(strides_.begin(), 0);
  }
}

// (rows, cols) of any strides into dense rows, in tiles that stay in L1.
static void copy_plane(
    const int32_t* from,
    int64_t row_stride,
    int64_t col_stride,
    int64_t rows,
    int64_t cols,
    int32_t* to) {
  if (col_stride == 1) {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(to + r * cols, from + r * row_stride, cols * element_size);
    }
    return;
  }
  constexpr int64_t tile = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += tile) {
    auto r1 = std::min(rows, r0 + tile);
    for (int64_t c0 = 0; c0 < cols; c0 += tile) {
      auto c1 = std::min(cols, c0 + tile);
      for (int64_t r = r0; r < r1; ++r) {
        for (int64_t c = c0; c < c1; ++c) {
          to[r * cols + c] = from[r * row_stride + c * col_stride];
        }
      }
    }
  }
}

void StridedCopy::run(
    const int32_t* from, int32_t* to, int64_t begin, int64_t end) const {
  auto rank = sizes_.size();
  auto rows = sizes_[rank - 2], cols = sizes_[rank - 1];
  auto row_stride = strides_[rank - 2], col_stride = strides_[rank - 1];
  while (begin < end) {
    auto row = begin / cols % rows, col = begin % cols;
    auto* start = from + row * row_stride + col * col_stride;
    auto plane = begin / (rows * cols);
    for (size_t d = rank - 2; d-- > 0; plane /= sizes_[d]) {
      start += plane % sizes_[d] * strides_[d];
    }
    // Whole rows of this plane, or what is wanted of one.
    auto whole = std::min(rows - row, (end - begin) / cols);
    bool part = col > 0 || whole == 0;
    auto n = part ? std::min(cols - col, end - begin) : whole * cols;
    copy_plane(
        start,
        row_stride,
        col_stride,
        part ? 1 : whole,
        part ? n : cols,
        to + begin);
    begin += n;
  }
}

std::pair<int64_t, int64_t> range_of(DType type) {
  if (type == DType::boolean) {
    return {0, 1};
  }
  auto bits = std::min(mil::bits(type), 32);
  switch (type) {
    case DType::int4:
    case DType::int8:
    case DType::int16:
    case DType::int32:
    case DType::int64:
      return {-(int64_t{1} << (bits - 1)), (int64_t{1} << (bits - 1)) - 1};
    default:
      // uint32 and uint64 keep what int32 storage can.
      return {0, (int64_t{1} << std::min(bits, 31)) - 1};
  }
}

void to_integers(const float* from, DType type, int32_t* to, int64_t n) {
  if (type == DType::boolean) {
    for (int64_t i = 0; i < n; ++i) {
      to[i] = from[i] != 0.0f;
    }
    return;
  }
  auto [low, high] = range_of(type);
  // Doubles hold every int32 bound exactly.
  auto least = static_cast<double>(low), most = static_cast<double>(high);
  for (int64_t i = 0; i < n; ++i) {
    auto value = static_cast<double>(from[i]);
    to[i] = std::isnan(value)
                ? 0
                : static_cast<int32_t>(std::clamp(value, least, most));
  }
}

int32_t wrap(int32_t value, DType type) {
  if (type == DType::boolean) {
    return value != 0;
  }
  auto bits = mil::bits(type);
  if (bits >= 32) {
    return value;
  }
  auto low = static_cast<uint32_t>(value) & ((1u << bits) - 1);
  auto [least, most] = range_of(type);
  auto out = static_cast<int32_t>(low);
  return out > most && least < 0 ? out - (1 << bits) : out;
}

}  // namespace mlx_ane::emulated
