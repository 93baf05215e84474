// Numbers of MIL text: decimal, scientific, hex-float and bit-pattern literals.
#pragma once

#include <cstdint>

#include "mil/program.h"

namespace mlx_ane::mil {

/// Why a literal was refused; nullptr stands for success.
using NumberError = const char*;

/// Reads one literal at `p` into element_bytes(type) little-endian bytes at
/// `out` and moves `p` behind it. Floats round to nearest even; a hexadecimal
/// literal without point and exponent (0x3c00) is the bit pattern of a float,
/// as ANEForge writes weights. Integers are range-checked; bools may be 0 or 1.
NumberError read_number(
    const char*& p, const char* end, DType type, uint8_t* out);

/// The same for a run "a, b, c" of plain numbers: reads at most `count`, stops
/// before anything else, and returns how many were read. `error` is set and `p`
/// is at the offending literal if one is refused.
int64_t read_numbers(
    const char*& p,
    const char* end,
    DType type,
    uint8_t* out,
    int64_t count,
    NumberError& error);

/// Appends the literal of one element: hex-floats for floats (exact), decimals
/// for integers, true and false for bools.
void append_number(std::string& text, DType type, const uint8_t* element);

/// Rounds to nearest even; exact for every value of the narrower type.
uint16_t half_bits(double value);

}  // namespace mlx_ane::mil
