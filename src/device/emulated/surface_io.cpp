// Row-wise conversion between a surface's element type and float or int32.
#include "device/emulated/surface_io.h"

#include <algorithm>
#include <cstring>

#include "host/half.h"

namespace mlx_ane::emulated {

namespace {

template <class T>
void widen(const std::byte* from, int32_t* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    to[i] = static_cast<int32_t>(value);
  }
}

template <class T>
void narrow(const int32_t* from, std::byte* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    auto value = static_cast<T>(from[i]);
    std::memcpy(to + i * sizeof(T), &value, sizeof(T));
  }
}

void load_row(const std::byte* from, DType type, void* to, int64_t n) {
  auto* ints = static_cast<int32_t*>(to);
  switch (type) {
    case DType::fp16:
      host::to_float(from, Float::f16, static_cast<float*>(to), n);
      return;
    case DType::int8:
      return widen<int8_t>(from, ints, n);
    case DType::uint8:
    case DType::boolean:
      return widen<uint8_t>(from, ints, n);
    case DType::int16:
      return widen<int16_t>(from, ints, n);
    case DType::uint16:
      return widen<uint16_t>(from, ints, n);
    default:  // fp32 and int32
      std::memcpy(to, from, n * element_size);
  }
}

void store_row(const void* from, DType type, std::byte* to, int64_t n) {
  auto* ints = static_cast<const int32_t*>(from);
  switch (type) {
    case DType::fp16:
      host::from_float(static_cast<const float*>(from), Float::f16, to, n);
      return;
    case DType::int8:
    case DType::uint8:
    case DType::boolean:
      return narrow<uint8_t>(ints, to, n);
    case DType::int16:
    case DType::uint16:
      return narrow<uint16_t>(ints, to, n);
    default:
      std::memcpy(to, from, n * element_size);
  }
}

}  // namespace

size_t surface_element_bytes(DType type) {
  switch (type) {
    case DType::fp16:
    case DType::int16:
    case DType::uint16:
      return 2;
    case DType::int8:
    case DType::uint8:
    case DType::boolean:
      return 1;
    case DType::fp32:
    case DType::int32:
      return 4;
    default:
      throw std::invalid_argument(
          std::string("a surface cannot hold ") + mil::to_string(type));
  }
}

size_t surface_bytes(const Type& type) {
  auto bytes = surface_element_bytes(type.dtype);
  if (!type.is_buffer()) {
    return mlx_ane::surface_bytes({{}, type.shape, bytes});
  }
  int64_t last = 0;
  for (size_t d = 0; d < type.shape.size(); ++d) {
    auto factor = type.interleave_factors[d];
    auto groups = std::max<int64_t>(type.shape[d] - 1, 0) / factor;
    constexpr int64_t most = int64_t{1} << 40;
    if (factor > most || type.strides[d] > most ||
        (groups > 0 && type.strides[d] > most / groups) || last > most) {
      throw std::invalid_argument(
          "a tensor_buffer with strides " + to_string(type.strides) +
          " is larger than any surface");
    }
    last += groups * type.strides[d] +
            std::min(factor, std::max<int64_t>(type.shape[d], 1)) - 1;
  }
  return static_cast<size_t>(last + 1) * bytes;
}

void load_surface(const std::byte* from, const Type& type, void* to) {
  each_run(type, [&](size_t byte, int64_t at, int64_t n) {
    load_row(from + byte, type.dtype, static_cast<int32_t*>(to) + at, n);
  });
}

void store_surface(const void* from, const Type& type, std::byte* to) {
  each_run(type, [&](size_t byte, int64_t at, int64_t n) {
    store_row(static_cast<const int32_t*>(from) + at, type.dtype, to + byte, n);
  });
}

}  // namespace mlx_ane::emulated
