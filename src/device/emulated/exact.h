// Matrix products as the chips' accumulators are reported to form them, bit for
// bit.
#pragma once

#include <string>

#include "device/emulated/product.h"

namespace mlx_ane::emulated {

/// As multiply, for every Numerics but fast; c holds fp16 values. Operands are
/// rounded to fp16; infinities and NaNs decode as 2^16 (1 + mantissa).
void multiply_exactly(
    const Product& p,
    const float* a,
    const float* b,
    const float* bias,
    float* c,
    Numerics numerics);

/// "avx512" or "portable": kernels of the fixed-point accumulator, chosen for
/// the CPU. std::invalid_argument for one that the CPU cannot run.
void set_exact_kernel(const std::string& name);

}  // namespace mlx_ane::emulated
