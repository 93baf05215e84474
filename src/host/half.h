// Conversion between fp32 and the 16-bit float types, chosen at run time for
// the CPU.
#pragma once

#include "host/matrix.h"

namespace mlx_ane::host {

/// dst[i] = fp32 of src[i]; `type` is the type of src (f32 copies).
void to_float(const void* src, Float type, float* dst, int64_t n);

/// dst[i] = src[i] rounded to nearest even in `type` (f32 copies).
void from_float(const float* src, Float type, void* dst, int64_t n);

/// Scalar forms, for edges and tests.
float half_to_float(uint16_t h);
uint16_t float_to_half(float f);
float bfloat_to_float(uint16_t b);
uint16_t float_to_bfloat(float f);

}  // namespace mlx_ane::host
