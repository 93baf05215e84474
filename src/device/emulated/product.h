// One matrix product in the arithmetic of the emulated engine.
#pragma once

#include <cstdint>

#include "device/emulated/numerics.h"

namespace mlx_ane::emulated {

/// c (m, n) = op(a) (m, k) op(b) (k, n), all row-major and dense.
struct Product {
  int64_t m, n, k;
  bool transpose_a = false;  // a is (k, m)
  bool transpose_b = false;  // b is (n, k)
};

/// `bias` (m), or null: where the accumulators of row i start. The result is
/// not yet rounded to fp16 in fast numerics. Operands hold fp16 values.
void multiply(
    const Product& p,
    const float* a,
    const float* b,
    const float* bias,
    float* c,
    Numerics numerics);

}  // namespace mlx_ane::emulated
