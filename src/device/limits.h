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
  /// Smallest last axis of an input or output: 32 in the field guide and the M5
  /// Max notes, 16 in Orion [X].
  int64_t min_width = 32;
  /// Inputs and outputs with more channels need min_width. ironmill, M3 Pro.
  int64_t narrow_channels = 768;
  /// Elements along an axis: 16384 through A15 (M1 to M3), 65536 from A16 on.
  /// ANEForge.
  int64_t max_axis = 65536;
  /// Elements along the channel axis of any chip. ANEForge.
  int64_t max_channels = 65536;
  int max_rank = 5;
  /// Output channels of a convolution: 32000 is refused on M4 Max by Orion,
  /// accepted by maderix [X].
  int64_t max_conv_channels = 31999;
  /// Width of a convolution kernel: 13 on M1, 15 later. ANEForge.
  int64_t max_kernel_width = 15;
  /// BLOBFILE constants of a function, and if it also has a scalar operand.
  /// Orion, M5 Max notes.
  int max_blobs = 16;
  int max_blobs_with_scalar = 15;
  /// Programs resident in a process: 127 on M5 Max, 96 to 118 elsewhere; the
  /// budget stays below all of them.
  int resident_programs = 96;
  /// Compilations of a process, where unloading gives nothing back: maderix.
  /// The field guide reports that unloading reclaims all [X].
  int max_compiles = 119;
  /// Weights of all resident programs share this window of addresses. oMLX.
  uint64_t address_window = uint64_t{4} << 30;
  /// Depth of one dot product before it is split and summed in fp32 on the
  /// host. MiniMax-H3-Swift: 20.6 TFLOP/s at 1344, 4.0 at 14336.
  int64_t max_contraction = 1344;
  /// log2 of the largest |sum of products|. The cliff is 2^15 (M6 study,
  /// ANEForge: 32752); one bit of margin covers rounding.
  int log2_max_sum = 14;
  /// Portable dialect needed: M1 and M2 reject the ios18 shorthand (maderix#6).
  bool verbose_dialect = false;
  /// Functions may take and give fp32 (maderix#6: not on M1 and M2).
  bool fp32_io = true;
  /// The cast op compiles (maderix#6: not on M1 and M2).
  bool cast = true;
  /// One weight file may hold several chunks (maderix: not on M1).
  bool multi_chunk_files = true;
  /// Slices at an offset of the last axis turn |x| > 4094 into inf before A16.
  /// ANEForge.
  bool narrow_slices = false;
};

/// Limits of a chip by architecture name ("h13" M1, "h14" M2, "h15" M3, "h16g"
/// M4, "h17s" M5); std::invalid_argument with the valid names otherwise.
Limits limits_of(const std::string& chip);

}  // namespace mlx_ane
