// Inner kernels of the exact product: one tile of sums in fixed point.
#pragma once

#include <cstdint>

namespace mlx_ane::emulated {

// The accumulator is Q15.16. A product x w of two fp16 values is exact in fp32.
// It is dropped if the exponents add up to -17 or less, that is if |w| is below
// a bound that depends on x alone, and else rounded half away from zero to
// 2^-16.
inline constexpr int tile_rows = 4;
inline constexpr int tile_cols = 32;

struct FixedTile {
  const float* a;      // (tile_rows, k): x * 2^16
  const float* bound;  // (tile_rows, k): smallest |w| that is kept
  const float* b;      // (k, tile_cols)
  int64_t k;
  const int64_t* start;  // (tile_rows): bias in units of 2^-16
};

/// sums (tile_rows, tile_cols). The caller knows that no partial sum can
/// overflow.
using FixedKernel = void (*)(const FixedTile& tile, int32_t* sums);
/// The same, where a sum that has reached 2^31 stays as it is.
using StickyKernel = void (*)(const FixedTile& tile, int64_t* sums);

struct FixedKernels {
  FixedKernel fixed;
  StickyKernel sticky;
};

const FixedKernels& portable_kernels();
/// nullptr where the CPU lacks AVX-512.
const FixedKernels* avx512_kernels();

}  // namespace mlx_ane::emulated
