// Writes MIL's number literals.
#include <bit>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "mil/number.h"

namespace mlx_ane::mil {

namespace {

/// ±0x1.<mantissa>p<exponent> of a float with `mantissa` stored bits.
void append_hex_float(
    std::string& text, uint64_t pattern, int mantissa, int exponent_bits) {
  uint64_t fraction = pattern & ((uint64_t{1} << mantissa) - 1);
  int field = static_cast<int>(
      pattern >> mantissa & ((uint64_t{1} << exponent_bits) - 1));
  int bias = (1 << (exponent_bits - 1)) - 1;
  if (pattern >> (mantissa + exponent_bits) & 1) {
    text += '-';
  }
  if (field == 2 * bias + 1) {
    text += fraction ? "nan" : "inf";
    return;
  }
  if (field == 0 && fraction == 0) {
    text += "0x0p+0";
    return;
  }
  int exponent = field - bias;
  if (field == 0) {
    int shift = mantissa + 1 - std::bit_width(fraction);
    fraction = fraction << shift & ((uint64_t{1} << mantissa) - 1);
    exponent = 1 - bias - shift;
  }
  text += "0x1";
  int n_digits = (mantissa + 3) / 4;
  uint64_t digits = fraction << (4 * n_digits - mantissa);
  for (; n_digits > 0 && (digits & 15) == 0; --n_digits) {
    digits >>= 4;
  }
  if (n_digits > 0) {
    text += '.';
    while (n_digits-- > 0) {
      text += "0123456789abcdef"[digits >> (4 * n_digits) & 15];
    }
  }
  text += 'p';
  text += exponent < 0 ? '-' : '+';
  text += std::to_string(std::abs(exponent));
}

bool is_canonical(DType type, uint64_t pattern) {
  uint64_t magnitude = pattern & ((uint64_t{1} << (bits(type) - 1)) - 1);
  switch (type) {
    case DType::fp16:
      return magnitude <= 0x7c00 || magnitude == 0x7e00;
    case DType::bf16:
      return magnitude <= 0x7f80 || magnitude == 0x7fc0;
    case DType::fp32:
      return magnitude <= 0x7f800000 || magnitude == 0x7fc00000;
    default:
      return magnitude <= 0x7ff0000000000000 || magnitude == 0x7ff8000000000000;
  }
}

void append_real(std::string& text, DType type, uint64_t pattern) {
  if (!is_canonical(type, pattern)) {
    // A NaN with a payload survives only as its bits.
    char buffer[24];
    auto end = std::to_chars(buffer, buffer + 24, pattern, 16).ptr;
    text.append("0x").append(buffer, end);
    return;
  }
  switch (type) {
    case DType::fp16:
      return append_hex_float(text, pattern, 10, 5);
    case DType::bf16:
      return append_hex_float(text, pattern, 7, 8);
    case DType::fp32:
      return append_hex_float(text, pattern, 23, 8);
    default:
      return append_hex_float(text, pattern, 52, 11);
  }
}

}  // namespace

void append_number(std::string& text, DType type, const uint8_t* element) {
  if (type == DType::boolean) {
    text += *element ? "true" : "false";
    return;
  }
  uint64_t pattern = 0;
  size_t size = element_bytes(type);
  std::memcpy(&pattern, element, size);
  if (is_float(type)) {
    return append_real(text, type, pattern);
  }
  char buffer[24];
  char* end = buffer;
  bool is_signed = type == DType::int4 || type == DType::int8 ||
                   type == DType::int16 || type == DType::int32 ||
                   type == DType::int64;
  if (is_signed) {
    int shift = 64 - 8 * static_cast<int>(size);
    auto value = static_cast<int64_t>(pattern << shift) >> shift;
    end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  } else {
    end = std::to_chars(buffer, buffer + sizeof(buffer), pattern).ptr;
  }
  text.append(buffer, end);
}

}  // namespace mlx_ane::mil
