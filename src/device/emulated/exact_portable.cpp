// Fixed-point tiles in plain loops that compilers turn into SSE2 or NEON.
#include <algorithm>
#include <bit>
#include <cmath>

#include "device/emulated/exact_kernels.h"

namespace mlx_ane::emulated {

namespace {

constexpr uint32_t sign_bit = 0x80000000;

/// x w rounded half away from zero, before it is cut to an integer: adding half
/// of the sign of the product is exact wherever it could change the integer
/// part.
inline float rounded(float x, float w) {
  auto signs =
      (std::bit_cast<uint32_t>(x) ^ std::bit_cast<uint32_t>(w)) & sign_bit;
  return x * w + std::bit_cast<float>(signs | 0x3f000000);
}

// Magnitudes are compared as integers, which compilers vectorise under every
// float rule.
void fixed(const FixedTile& t, int32_t* sums) {
  for (int r = 0; r < tile_rows; ++r) {
    auto *a = t.a + r * t.k, *bound = t.bound + r * t.k;
    int32_t total[tile_cols];
    std::fill_n(total, tile_cols, static_cast<int32_t>(t.start[r]));
    auto* b = t.b;
    for (int64_t i = 0; i < t.k; ++i, b += tile_cols) {
      auto x = a[i];
      auto least = std::bit_cast<int32_t>(bound[i]);
      for (int j = 0; j < tile_cols; ++j) {
        auto size = std::bit_cast<int32_t>(b[j]) & INT32_MAX;
        auto keep = -static_cast<int32_t>(size >= least);
        total[j] += static_cast<int32_t>(rounded(x, b[j])) & keep;
      }
    }
    std::copy_n(total, tile_cols, sums + r * tile_cols);
  }
}

void sticky(const FixedTile& t, int64_t* sums) {
  constexpr int64_t limit = int64_t{1} << 31;
  for (int r = 0; r < tile_rows; ++r) {
    auto *a = t.a + r * t.k, *bound = t.bound + r * t.k;
    auto* total = sums + r * tile_cols;
    for (int j = 0; j < tile_cols; ++j) {
      total[j] = t.start[r];
    }
    auto* b = t.b;
    for (int64_t i = 0; i < t.k; ++i, b += tile_cols) {
      for (int j = 0; j < tile_cols; ++j) {
        bool live = total[j] > -limit && total[j] < limit;
        bool kept = std::fabs(b[j]) >= bound[i];
        auto value = static_cast<int64_t>(rounded(a[i], b[j]));
        total[j] += live && kept ? value : 0;
      }
    }
  }
}

}  // namespace

const FixedKernels& portable_kernels() {
  static constexpr FixedKernels kernels = {fixed, sticky};
  return kernels;
}

}  // namespace mlx_ane::emulated
