// Numbers of Core ML's messages for the types of MIL.
#pragma once

#include <array>
#include <cstdint>

#include "mil/program.h"

namespace mlx_ane::mil {

/// MIL.proto's DataType, in the order of DType.
inline constexpr std::array<uint8_t, 20> type_codes = {
    10, 11, 12, 13, 25, 21, 22, 23, 24, 37,
    36, 39, 35, 38, 31, 32, 33, 34, 1,  2,
};
static_assert(static_cast<size_t>(DType::string) + 1 == type_codes.size());

inline uint64_t type_code(DType dtype) {
  return type_codes[static_cast<size_t>(dtype)];
}

/// FeatureTypes.proto's ArrayDataType; 0 for types that cannot go in or out.
inline uint64_t array_code(DType dtype) {
  return dtype == DType::fp16    ? 65552
         : dtype == DType::fp32  ? 65568
         : dtype == DType::int32 ? 131104
         : dtype == DType::int8  ? 131080
                                 : 0;
}

/// The field of TensorValue that holds a constant's elements.
enum class Storage {
  floats = 1,
  ints = 2,
  bools = 3,
  strings = 4,
  long_ints = 5,
  doubles = 6,
  bytes = 7,
};

/// As MIL's reader expects them: halves and small integers as bytes.
inline Storage storage_of(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return Storage::floats;
    case DType::fp64:
      return Storage::doubles;
    case DType::int16:
    case DType::uint16:
    case DType::int32:
      return Storage::ints;
    case DType::int64:
    case DType::uint64:
      return Storage::long_ints;
    case DType::boolean:
      return Storage::bools;
    case DType::string:
      return Storage::strings;
    default:
      return Storage::bytes;
  }
}

}  // namespace mlx_ane::mil
