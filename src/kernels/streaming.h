// Whether stores should bypass the cache: asked once a call, by a look at it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace mlx_ane::kernels {

/// True if a few lines of data[0 .. bytes) come from memory rather than from a
/// cache: their reads wait for each other, 5 to 15 ns each from a cache, 80 and
/// more from memory.
inline bool is_cold(const void* data, int64_t bytes) {
  constexpr int64_t samples = 4;
  constexpr std::chrono::nanoseconds warm(150);
  auto first = static_cast<const volatile unsigned char*>(data);
  auto start = std::chrono::steady_clock::now();
  size_t offset = 0;
  for (int64_t i = 0; i < samples; ++i) {
    // Its value is not used, but the next address waits for it.
    size_t wait = first[offset] & 0u;
    offset = static_cast<size_t>((i + 1) * (bytes - 1) / samples) + wait;
  }
  size_t last = first[offset];
  return last > 255 || std::chrono::steady_clock::now() - start > warm;
}

/// Stores that bypass the cache save reading what they overwrite from memory,
/// but are half as fast into a warm cache.
inline bool worth_streaming(const void* data, int64_t bytes) {
  constexpr int64_t small = 256 << 10, large = 8 << 20;
  return bytes > small && (bytes > large || is_cold(data, bytes));
}

}  // namespace mlx_ane::kernels
