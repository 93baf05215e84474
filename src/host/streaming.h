// When to use non-temporal stores.
#pragma once

#include <chrono>
#include <cstdint>

namespace mlx_ane::host {

/// True if reading a few lines of data[0 .. bytes) takes as long as from
/// memory: 5 to 15 ns a line from a cache, 80 and more from memory.
inline bool is_cold(const void* data, int64_t bytes) {
  constexpr int64_t samples = 4;
  constexpr std::chrono::nanoseconds warm(150);
  // Volatile: read although no value is used.
  auto first = static_cast<const volatile unsigned char*>(data);
  auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i <= samples; ++i) {
    static_cast<void>(first[i * (bytes - 1) / samples]);
  }
  return std::chrono::steady_clock::now() - start > warm;
}

/// Non-temporal stores if the destination is not cached: they save reading it
/// from memory, but are half as fast into a warm cache.
inline bool worth_streaming(const void* data, int64_t bytes) {
  constexpr int64_t small = 256 << 10, large = 8 << 20;
  return bytes > small && (bytes > large || is_cold(data, bytes));
}

}  // namespace mlx_ane::host
