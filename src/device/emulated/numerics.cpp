// Rounding to fp16 at op boundaries.
#include "device/emulated/numerics.h"

#include "host/loops.h"

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
  host::loops().round_to_half(values, n);
}

}  // namespace mlx_ane::emulated
