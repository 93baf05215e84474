// Every hardware limit once, with the report that it comes from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mlx_ane {

/// Sources are named as in docs/limits.md. Values marked [X] are disputed; the
/// stricter reading is the default.
struct Limits {
  /// Architecture these limits belong to.
  std::string chip = "h16g";
  /// Row (last axis) stride in bytes. MiniMax-H3-Swift, M5 Max runtime notes.
  size_t row_alignment = 64;
  /// Smallest surface. Orion: 48 KiB; oMLX rounds to 64 KiB [X].
  size_t min_surface_bytes = 64 * 1024;
  /// Elements along an axis: 16384 through A15 (M1 to M3), 65536 from A16 on.
  /// ANEForge.
  int64_t max_axis = 65536;
  int max_rank = 5;
  /// Programs resident in a process: 127 on M5 Max, 96 to 118 elsewhere; the
  /// budget stays below all of them.
  int resident_programs = 96;
  /// Depth of one dot product before it is split and summed in fp32 on the
  /// host. MiniMax-H3-Swift: 20.6 TFLOP/s at 1344, 4.0 at 14336.
  int64_t max_contraction = 1344;
  /// log2 of the largest |sum of products|. The cliff is 2^15 (M6 study,
  /// ANEForge: 32752); one bit of margin covers rounding.
  int log2_max_sum = 14;
  /// Portable dialect needed: M1 and M2 reject the ios18 shorthand (maderix#6).
  bool verbose_dialect = false;
};

/// Limits of a chip by architecture name ("h13" M1, "h14" M2, "h15" M3, "h16g"
/// M4, "h17s" M5); std::invalid_argument with the valid names otherwise.
Limits limits_of(const std::string& chip);

} // namespace mlx_ane
