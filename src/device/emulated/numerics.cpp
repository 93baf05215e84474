// Rounding to fp16 at op boundaries.
#include "device/emulated/numerics.h"

#include <algorithm>

#include "host/half.h"

namespace mlx_ane::emulated {

Numerics numerics_of(int generation) {
  switch (generation) {
    case 13:
      return Numerics::groups_of_four;
    case 15:
      return Numerics::half_products;
    case 14:
    case 17:
      return Numerics::fixed_point_32752;
    default:
      return Numerics::fixed_point;
  }
}

void round_to_half(float* values, int64_t n) {
  constexpr int64_t block = 2048;  // 4 KiB of halves stay in L1
  uint16_t halves[block];
  for (int64_t i = 0; i < n; i += block) {
    auto count = std::min(block, n - i);
    host::from_float(values + i, Float::f16, halves, count);
    host::to_float(halves, Float::f16, values + i, count);
  }
}

}  // namespace mlx_ane::emulated
