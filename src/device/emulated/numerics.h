// How the emulated engine computes: which arithmetic, and rounding to fp16.
#pragma once

#include <cstdint>

namespace mlx_ane::emulated {

/// Accumulation of products. `single` rounds nothing to fp16: no engine's, but
/// the host's own. `fast` sums in fp32; the others are what is reported of the
/// chips (docs/emulated.md).
enum class Numerics : uint8_t {
  single,
  fast,
  fixed_point,        // Q15.16, overflow to inf at 2^15 (M4, M6: M6 study)
  fixed_point_32752,  // the same, inf past 32752 (M2 Pro, M5: ANEForge)
  half_products,  // fp16 products, wide sum, 0 past 2^15 (M3: MiniMax-H3-Swift)
  groups_of_four,  // fp16 sums of four, then fp32 (M1: Bryngelson)
};

/// What is reported of a generation of chips (13 for h13, ...).
Numerics numerics_of(int generation);

/// values[i] = fp32 of fp16(values[i]), to nearest even, in place.
void round_to_half(float* values, int64_t n);

}  // namespace mlx_ane::emulated
