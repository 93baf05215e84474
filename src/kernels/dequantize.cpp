// Reads the bit stream of a row group by group through tables where it can.
#include "kernels/dequantize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "host/half.h"

namespace mlx_ane::kernels {

namespace {

/// Value of an 8-bit float with 4 exponent and 3 mantissa bits; no infinities.
float e4m3(int code) {
  auto exponent = code >> 3 & 15;
  auto mantissa = code & 7;
  float value = exponent == 0 ? std::ldexp(mantissa, -9)
                              : std::ldexp(8 + mantissa, exponent - 10);
  if ((code & 127) == 127) {
    value = std::numeric_limits<float>::quiet_NaN();
  }
  return code & 128 ? -value : value;
}

/// Value of a 4-bit float with 2 exponent bits and 1 mantissa bit.
float e2m1(int code) {
  static constexpr std::array<float, 8> values = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  return code & 8 ? -values[code & 7] : values[code & 7];
}

std::array<float, 256> table(float (*value)(int)) {
  std::array<float, 256> out;
  for (int code = 0; code < 256; ++code) {
    out[code] = value(code);
  }
  return out;
}

/// Codes of `n` elements from element `first` of a row on.
void unpack_codes(
    const uint8_t* row, int bits, int64_t first, int64_t n, uint8_t* codes) {
  if (bits == 8) {
    std::copy_n(row + first, n, codes);
    return;
  }
  auto mask = (1u << bits) - 1;
  for (int64_t i = 0; i < n; ++i) {
    auto bit = (first + i) * bits;
    auto offset = static_cast<int>(bit & 7);
    unsigned window = row[bit >> 3];
    if (offset + bits > 8) {
      window |= static_cast<unsigned>(row[(bit >> 3) + 1]) << 8;
    }
    codes[i] = static_cast<uint8_t>(window >> offset & mask);
  }
}

float typed(const void* data, Float type, int64_t i) {
  float value;
  host::to_float(
      static_cast<const char*>(data) + i * static_cast<int64_t>(size_of(type)),
      type,
      &value,
      1);
  return value;
}

/// Scale of a group in the modes that store it in a byte.
float byte_scale(const QuantizedMatrix& w, int64_t group) {
  static const auto e4m3_values = table(e4m3);
  auto code = static_cast<const uint8_t*>(w.scales)[group];
  return w.mode == QuantizationMode::nvfp4 ? e4m3_values[code]
                                           : std::ldexp(1.0f, code - 127);
}

}  // namespace

void dequantize_rows(
    const QuantizedMatrix& w, int64_t begin, int64_t count, float* out) {
  static const auto e4m3_values = table(e4m3);
  static const auto e2m1_values = table(e2m1);
  auto& values = w.mode == QuantizationMode::mxfp8 ? e4m3_values : e2m1_values;
  auto groups = w.cols / w.group_size;
  auto row_bytes = w.cols * w.bits / 8;
  std::array<uint8_t, 256> codes;
  for (int64_t r = begin; r < begin + count; ++r) {
    auto* row = w.data + r * row_bytes;
    for (int64_t g = 0; g < groups; ++g) {
      auto first = g * w.group_size;
      auto group = r * groups + g;
      auto* dst = out + (r - begin) * w.cols + first;
      unpack_codes(row, w.bits, first, w.group_size, codes.data());
      if (w.mode == QuantizationMode::affine) {
        auto scale = typed(w.scales, w.scale_type, group);
        auto bias = typed(w.biases, w.scale_type, group);
        for (int64_t i = 0; i < w.group_size; ++i) {
          dst[i] = scale * codes[i] + bias;
        }
      } else {
        auto scale = byte_scale(w, group);
        for (int64_t i = 0; i < w.group_size; ++i) {
          dst[i] = scale * values[codes[i]];
        }
      }
    }
  }
}

}  // namespace mlx_ane::kernels
