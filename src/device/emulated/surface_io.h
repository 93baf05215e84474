// Converts surfaces to the interpreter's values and back: rows padded to 64
// bytes, or the layout that a tensor_buffer gives.
#pragma once

#include "device/device.h"
#include "device/emulated/op.h"

namespace mlx_ane::emulated {

/// Bytes of one element in a surface.
size_t surface_element_bytes(DType type);

/// Bytes of the surface of a value; std::invalid_argument past 2^40.
size_t surface_bytes(const Type& type);

/// body(byte offset in the surface, element offset, elements) of each run of
/// elements without padding.
template <class Body>
void each_run(const Type& type, Body&& body) {
  auto n = elements(type.shape);
  auto bytes = surface_element_bytes(type.dtype);
  auto cols = type.shape.empty() ? 1 : type.shape.back();
  if (n == 0) {
    return;
  }
  if (!type.is_buffer()) {
    auto stride = row_bytes({{}, type.shape, bytes});
    if (stride == cols * bytes) {
      body(size_t{0}, int64_t{0}, n);
      return;
    }
    for (int64_t r = 0; r < n / cols; ++r) {
      body(r * stride, r * cols, cols);
    }
    return;
  }
  bool dense_rows =
      type.strides.back() == 1 && type.interleave_factors.back() == 1;
  auto run = dense_rows ? cols : 1;
  for (int64_t at = 0; at < n; at += run) {
    int64_t rest = at, offset = 0;
    for (size_t d = type.shape.size(); d-- > 0; rest /= type.shape[d]) {
      auto i = rest % type.shape[d];
      auto factor = type.interleave_factors[d];
      offset += i / factor * type.strides[d] + i % factor;
    }
    body(offset * bytes, at, run);
  }
}

/// `to`: dense values in the representation of op.h.
void load_surface(const std::byte* from, const Type& type, void* to);
void store_surface(const void* from, const Type& type, std::byte* to);

}  // namespace mlx_ane::emulated
