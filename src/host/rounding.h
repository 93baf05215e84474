// Counter-based stochastic rounding: the same seed and index give the same
// bits.
#pragma once

#include <bit>
#include <cstdint>

#include "host/half.h"

namespace mlx_ane::host {

/// Elements that share one key; the index within it is hashed per element.
inline constexpr int64_t random_block = 4096;

/// Key of the block that holds element `index` (SplitMix64's finaliser).
inline uint32_t random_key(uint64_t seed, int64_t index) {
  auto block = static_cast<uint64_t>(index / random_block);
  uint64_t z = seed + (block + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
}

/// 32 random bits of one element (Wellons' lowbias32 hash).
inline uint32_t random_bits(uint32_t key, uint32_t index_in_block) {
  uint32_t x = key + index_in_block * 0x9e3779b9u;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

/// Rounds to one of the two neighbours, each with the probability of its
/// nearness. NaN, infinity and what is beyond the type's range round as usual.
inline uint16_t stochastic_bfloat(float f, uint32_t random) {
  uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffff) >= 0x7f7f0000) {
    return float_to_bfloat(f);
  }
  return static_cast<uint16_t>((bits + (random >> 16)) >> 16);
}

inline uint16_t stochastic_half(float f, uint32_t random) {
  uint32_t bits = std::bit_cast<uint32_t>(f);
  uint32_t magnitude = bits & 0x7fffffff;
  uint32_t sign = (bits >> 16) & 0x8000;
  if (magnitude >= 0x477fe000) {  // 65504, the largest half
    return float_to_half(f);
  }
  if (magnitude < 0x38800000) {
    // Subnormal halves are multiples of 2^-24: 13 more bits decide.
    auto fixed =
        static_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p37f);
    return static_cast<uint16_t>(sign | ((fixed + (random >> 19)) >> 13));
  }
  return static_cast<uint16_t>(
      sign | ((magnitude - (112u << 23) + (random >> 19)) >> 13));
}

}  // namespace mlx_ane::host
