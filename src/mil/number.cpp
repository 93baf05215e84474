// Reads MIL's number literals.
#include "mil/number.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <locale>
#include <sstream>

namespace mlx_ane::mil {

namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

int hex_digit(char c) {
  if (is_digit(c)) {
    return c - '0';
  }
  c |= 0x20;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool starts(const char* p, const char* end, std::string_view word) {
  return static_cast<size_t>(end - p) >= word.size() &&
         std::memcmp(p, word.data(), word.size()) == 0;
}

/// Rounds a double to a float of `mantissa` stored bits and bias `bias`, ties
/// to even, with subnormals; `width` is its total number of bits.
uint32_t round_to(double value, int mantissa, int bias, int width) {
  auto bits = std::bit_cast<uint64_t>(value);
  auto sign = static_cast<uint32_t>(bits >> 63) << (width - 1);
  uint32_t infinity = ((1u << (width - 1 - mantissa)) - 1) << mantissa;
  int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
  uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
  if (exponent == 1024) {
    return sign | infinity | (fraction ? 1u << (mantissa - 1) : 0);
  }
  int lowest = 1 - bias;
  int drop = 52 - mantissa + (exponent < lowest ? lowest - exponent : 0);
  if (drop > 54) {
    return sign;
  }
  uint64_t whole = fraction | uint64_t{1} << 52;
  uint64_t kept = whole >> drop;
  uint64_t rest = whole & ((uint64_t{1} << drop) - 1);
  uint64_t half = uint64_t{1} << (drop - 1);
  kept += rest > half || (rest == half && (kept & 1));
  // A carry out of the mantissa increments the exponent field by itself.
  uint64_t field = exponent < lowest ? 0 : exponent - lowest;
  uint64_t result = (field << mantissa) + kept;
  return sign | static_cast<uint32_t>(std::min<uint64_t>(result, infinity));
}

/// Correctly rounded, for what the fast path cannot take.
template <typename T>
T slow_decimal(const char* first, const char* last) {
  T value = 0;
#if defined(__cpp_lib_to_chars)
  auto result = std::from_chars(first, last, value);
  if (result.ec != std::errc::result_out_of_range) {
    return value;
  }
#endif
  std::istringstream stream(std::string(first, last));
  stream.imbue(std::locale::classic());
  stream >> value;
  // Streams clamp to the largest number; floats overflow to infinity.
  if (std::abs(value) == std::numeric_limits<T>::max()) {
    value *= 2;
  }
  return value;
}

struct Decimal {
  double value = 0;
  const char* first;
  const char* last;
};

/// Decimal digits without sign. Up to 2^53 * 10^22 is exact in one operation.
NumberError read_decimal(const char*& p, const char* end, Decimal& out) {
  static constexpr double powers[] = {
      1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
      1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  out.first = p;
  uint64_t mantissa = 0;
  int64_t exponent = 0;
  const char* digits = p;
  while (p < end && is_digit(*p)) {
    mantissa = mantissa * 10 + (*p++ - '0');
  }
  int64_t n_digits = p - digits;
  if (p < end && *p == '.') {
    const char* point = ++p;
    while (p < end && is_digit(*p)) {
      mantissa = mantissa * 10 + (*p++ - '0');
    }
    exponent = point - p;
    n_digits += p - point;
  }
  if (n_digits == 0) {
    return "expected a number";
  }
  if (p < end && (*p | 0x20) == 'e') {
    const char* q = p + 1;
    bool negative = q < end && *q == '-';
    q += q < end && (*q == '-' || *q == '+');
    if (q == end || !is_digit(*q)) {
      return "expected digits in the exponent";
    }
    int64_t written = 0;
    for (; q < end && is_digit(*q); ++q) {
      written = std::min<int64_t>(written * 10 + (*q - '0'), 100000);
    }
    exponent += negative ? -written : written;
    p = q;
  }
  out.last = p;
  if (n_digits > 18 || mantissa > uint64_t{1} << 53 || exponent < -22 ||
      exponent > 22) {
    out.value = slow_decimal<double>(out.first, out.last);
  } else {
    double exact = static_cast<double>(mantissa);
    out.value =
        exponent < 0 ? exact / powers[-exponent] : exact * powers[exponent];
  }
  return nullptr;
}

/// mantissa * 2^exponent; `sticky` where digits beyond 64 bits were not zero.
struct HexDigits {
  uint64_t mantissa = 0;
  int64_t exponent = 0;
  bool sticky = false;
  bool point = false;
};

NumberError read_hex_digits(const char*& p, const char* end, HexDigits& out) {
  auto& [mantissa, exponent, sticky, point] = out;
  int n_digits = 0;
  for (; p < end; ++p) {
    int digit = hex_digit(*p);
    if (digit < 0) {
      if (*p != '.' || point) {
        break;
      }
      point = true;
      continue;
    }
    ++n_digits;
    if (mantissa >> 60) {
      sticky |= digit != 0;
      exponent += point ? 0 : 4;
    } else {
      mantissa = mantissa << 4 | digit;
      exponent -= point ? 4 : 0;
    }
    if (n_digits > 4096) {
      return "a hexadecimal number of that length is not supported";
    }
  }
  return n_digits == 0 ? "expected hexadecimal digits after 0x" : nullptr;
}

/// After "0x": a hex-float, or a bit pattern if there is no point or exponent.
NumberError read_hex(
    const char*& p,
    const char* end,
    double& value,
    bool& is_bits,
    uint64_t& pattern) {
  HexDigits digits;
  if (auto error = read_hex_digits(p, end, digits)) {
    return error;
  }
  auto [mantissa, exponent, sticky, point] = digits;
  is_bits = !point && (p == end || (*p | 0x20) != 'p');
  if (is_bits) {
    pattern = mantissa;
    return sticky || exponent ? "the bit pattern has too many digits" : nullptr;
  }
  if (p < end && (*p | 0x20) == 'p') {
    ++p;
    bool negative = p < end && *p == '-';
    p += p < end && (*p == '-' || *p == '+');
    if (p == end || !is_digit(*p)) {
      return "expected digits in the exponent";
    }
    int64_t written = 0;
    for (; p < end && is_digit(*p); ++p) {
      written = std::min<int64_t>(written * 10 + (*p - '0'), 100000);
    }
    exponent += negative ? -written : written;
  }
  // Odd rounding to 64 bits keeps the one rounding to double right.
  value = std::ldexp(
      static_cast<double>(mantissa | (sticky ? 1 : 0)),
      static_cast<int>(exponent));
  return nullptr;
}

template <typename T>
void store(uint8_t* out, T value) {
  std::memcpy(out, &value, sizeof(T));
}

void store_real(DType type, double value, uint8_t* out) {
  switch (type) {
    case DType::fp16:
      return store(out, half_bits(value));
    case DType::bf16:
      return store(out, static_cast<uint16_t>(round_to(value, 7, 127, 16)));
    case DType::fp32:
      return store(out, static_cast<float>(value));
    default:
      return store(out, value);
  }
}

NumberError store_pattern(
    DType type, uint64_t pattern, bool negative, uint8_t* out) {
  int width = bits(type);
  if (negative || (width < 64 && pattern >> width)) {
    return "the bit pattern does not fit its type; write a hex-float (0x1p-3) "
           "for a value";
  }
  std::memcpy(out, &pattern, width / 8);
  return nullptr;
}

NumberError read_real(
    const char*& p, const char* end, DType type, uint8_t* out) {
  bool negative = *p == '-';
  p += *p == '-' || *p == '+';
  double value = 0;
  if (p < end && is_digit(*p) && !starts(p, end, "0x") &&
      !starts(p, end, "0X")) {
    Decimal decimal;
    if (auto error = read_decimal(p, end, decimal)) {
      return error;
    }
    value = decimal.value;
    // On a tie of the double, only the digits know which way fp32 rounds.
    constexpr uint64_t below = (uint64_t{1} << 29) - 1;
    if (type == DType::fp32 &&
        (std::bit_cast<uint64_t>(value) & below) == uint64_t{1} << 28) {
      value = slow_decimal<float>(decimal.first, decimal.last);
    }
  } else if (starts(p, end, "0x") || starts(p, end, "0X")) {
    p += 2;
    bool is_bits = false;
    uint64_t pattern = 0;
    if (auto error = read_hex(p, end, value, is_bits, pattern)) {
      return error;
    }
    if (is_bits) {
      return store_pattern(type, pattern, negative, out);
    }
  } else if (starts(p, end, "inf")) {
    p += starts(p, end, "infinity") ? 8 : 3;
    value = std::numeric_limits<double>::infinity();
  } else if (starts(p, end, "nan")) {
    p += 3;
    value = std::numeric_limits<double>::quiet_NaN();
  } else if (p < end && *p == '.') {
    Decimal decimal;
    if (auto error = read_decimal(p, end, decimal)) {
      return error;
    }
    value = decimal.value;
  } else {
    return "expected a number";
  }
  store_real(type, negative ? -value : value, out);
  return nullptr;
}

NumberError read_integer(
    const char*& p, const char* end, DType type, uint8_t* out) {
  bool negative = *p == '-';
  p += *p == '-' || *p == '+';
  uint64_t value = 0;
  bool overflow = false;
  const char* digits = p;
  if (starts(p, end, "0x") || starts(p, end, "0X")) {
    digits = p += 2;
    for (int digit; p < end && (digit = hex_digit(*p)) >= 0; ++p) {
      overflow |= value >> 60 != 0;
      value = value << 4 | digit;
    }
  } else {
    for (; p < end && is_digit(*p); ++p) {
      uint64_t next = value * 10 + (*p - '0');
      overflow |= value > (UINT64_MAX - 9) / 10 && next / 10 != value;
      value = next;
    }
  }
  if (p == digits) {
    return "expected an integer";
  }
  if (p < end && (*p == '.' || (*p | 0x20) == 'e')) {
    return "expected an integer, got a fraction";
  }
  bool is_signed = type == DType::int4 || type == DType::int8 ||
                   type == DType::int16 || type == DType::int32 ||
                   type == DType::int64;
  int width = bits(type);
  uint64_t largest = is_signed     ? (uint64_t{1} << (width - 1)) - 1
                     : width == 64 ? UINT64_MAX
                                   : (uint64_t{1} << width) - 1;
  uint64_t limit = negative ? (is_signed ? largest + 1 : 0) : largest;
  if (overflow || value > limit) {
    return "the integer is out of its type's range";
  }
  uint64_t stored = negative ? ~value + 1 : value;
  std::memcpy(out, &stored, element_bytes(type));
  return nullptr;
}

NumberError read_bool(const char*& p, const char* end, uint8_t* out) {
  for (auto [word, value] :
       {std::pair<std::string_view, int>{"true", 1},
        {"false", 0},
        {"1", 1},
        {"0", 0}}) {
    if (starts(p, end, word)) {
      p += word.size();
      *out = static_cast<uint8_t>(value);
      return nullptr;
    }
  }
  return "expected true or false";
}

}  // namespace

uint16_t half_bits(double value) {
  return static_cast<uint16_t>(round_to(value, 10, 15, 16));
}

NumberError read_number(
    const char*& p, const char* end, DType type, uint8_t* out) {
  if (p == end) {
    return "expected a number";
  }
  const char* start = p;
  NumberError error = type == DType::boolean ? read_bool(p, end, out)
                      : is_float(type)       ? read_real(p, end, type, out)
                                             : read_integer(p, end, type, out);
  if (!error && p < end &&
      (is_digit(*p) || (*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z') ||
       *p == '_' || *p == '.')) {
    error = "malformed number";
  }
  if (error) {
    p = start;
  }
  return error;
}

int64_t read_numbers(
    const char*& p,
    const char* end,
    DType type,
    uint8_t* out,
    int64_t count,
    NumberError& error) {
  size_t size = element_bytes(type);
  int64_t done = 0;
  while (done < count && p < end &&
         (is_digit(*p) || *p == '-' || *p == '+' || *p == '.')) {
    if ((error = read_number(p, end, type, out))) {
      return done;
    }
    out += size;
    ++done;
    const char* q = p;
    while (q < end && *q == ' ') {
      ++q;
    }
    if (q == end || *q != ',') {
      return done;
    }
    ++q;
    while (q < end && *q == ' ') {
      ++q;
    }
    if (q == end || !(is_digit(*q) || *q == '-' || *q == '+' || *q == '.')) {
      return done;
    }
    if (done == count) {
      return done;
    }
    p = q;
  }
  return done;
}

}  // namespace mlx_ane::mil
