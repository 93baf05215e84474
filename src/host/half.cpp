// Conversion between fp32 and the 16-bit float types.
#include "host/half.h"

#include <bit>
#include <cstring>

#include "host/loops.h"

namespace mlx_ane::host {

float half_to_float(uint16_t h) {
  uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  uint32_t exponent = (h >> 10) & 0x1f;
  uint32_t mantissa = h & 0x3ff;
  if (exponent == 0) {
    // Subnormal: mantissa * 2^-24, exact in fp32.
    float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  if (exponent == 31) {
    // A signalling NaN becomes quiet, as the CPU's instruction does.
    uint32_t quiet = mantissa != 0 ? 0x00400000 : 0;
    return std::bit_cast<float>(sign | 0x7f800000 | quiet | (mantissa << 13));
  }
  return std::bit_cast<float>(
      sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t float_to_half(float f) {
  uint32_t bits = std::bit_cast<uint32_t>(f);
  auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) {
    return static_cast<uint16_t>(sign | 0x7e00 | ((bits >> 13) & 0x3ff));
  }
  if (bits >= 0x47800000) {  // 65536 and above; 65520 rounds up below.
    return sign | 0x7c00;
  }
  if (bits < 0x38800000) {
    // Below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low
    // bits.
    float shifted = std::bit_cast<float>(bits) + 0.5f;
    return static_cast<uint16_t>(
        sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
  }
  uint32_t odd = (bits >> 13) & 1;
  return static_cast<uint16_t>(
      sign | ((bits - (112u << 23) + 0xfff + odd) >> 13));
}

float bfloat_to_float(uint16_t b) {
  return std::bit_cast<float>(static_cast<uint32_t>(b) << 16);
}

uint16_t float_to_bfloat(float f) {
  uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffff) > 0x7f800000) {
    return static_cast<uint16_t>((bits >> 16) | 0x40);
  }
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void to_float(const void* src, Float type, float* dst, int64_t n) {
  auto halves = static_cast<const uint16_t*>(src);
  if (n <= 0) {
    return;
  }
  switch (type) {
    case Float::f32:
      std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
      break;
    case Float::f16:
      loops().half_to_float(halves, dst, n, false);
      break;
    case Float::bf16:
      loops().bfloat_to_float(halves, dst, n);
      break;
  }
}

void from_float(const float* src, Float type, void* dst, int64_t n) {
  auto halves = static_cast<uint16_t*>(dst);
  if (n <= 0) {
    return;
  }
  switch (type) {
    case Float::f32:
      std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
      break;
    case Float::f16:
      loops().float_to_half(src, halves, n, false);
      break;
    case Float::bf16:
      loops().float_to_bfloat(src, halves, n);
      break;
  }
}

}  // namespace mlx_ane::host
