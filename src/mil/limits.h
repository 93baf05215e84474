// Every number that limits an engine, once, with the report that it comes from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mlx_ane::mil {

/// What an engine holds. Sources are named as in docs/limits.md. Values marked
/// [X] are disputed; the stricter reading is the default. Static ones are the
/// same on every chip; the others are of `chip`, or measured by the self-test.
struct Limits {
  /// Architecture these limits belong to, with its suffix ("h14g").
  std::string chip = "h16g";
  /// 13 for h13 (M1) to 18.
  int generation = 16;
  /// Row (last axis) stride in bytes. MiniMax-H3-Swift, M5 Max notes.
  static constexpr size_t row_alignment = 64;
  /// Smallest surface. Orion: 48 KiB; oMLX rounds to 64 KiB [X].
  static constexpr size_t min_surface_bytes = 64 * 1024;
  /// Smallest last axis of an input or output: 32 in the field guide and the M5
  /// Max notes, 16 in Orion [X].
  static constexpr int64_t min_width = 32;
  /// Inputs and outputs with more channels need min_width: ironmill, M3 Pro;
  /// Orion needs 16 [X].
  static constexpr int64_t narrow_channels = 768;
  /// Elements along an axis: 16384 through A15 (M1 to M3), 65536 from A16 on.
  /// ANEForge.
  int64_t max_axis = 65536;
  /// Elements along the channel axis of any chip, the second of four or more.
  /// ANEForge.
  static constexpr int64_t max_channels = 65536;
  /// Axes of a tensor. ANEForge.
  static constexpr int64_t max_rank = 5;
  /// Output channels of a convolution: 32000 is refused on M4 Max by Orion,
  /// accepted by maderix [X].
  static constexpr int64_t max_conv_channels = 31999;
  /// Width of a convolution kernel: 13 on M1, 15 later. ANEForge.
  int64_t max_kernel_width = 15;
  /// BLOBFILE constants of a function, and if it also has a scalar operand.
  /// Orion, M5 Max notes; Espresso has 30 [X].
  static constexpr int max_blobs = 16;
  static constexpr int max_blobs_with_scalar = 15;
  /// Programs resident in a process: 127 on M5 Max, 96 to 118 elsewhere; the
  /// budget stays below all of them.
  static constexpr int resident_programs = 96;
  /// Compilations of a process, where unloading gives nothing back: maderix.
  /// The field guide reports that unloading reclaims all [X].
  static constexpr int max_compiles = 119;
  /// Weights of all resident programs share this window of addresses. oMLX.
  static constexpr uint64_t address_window = uint64_t{4} << 30;
  /// Depth of one dot product before it is split and summed in fp32 on the
  /// host. MiniMax-H3-Swift: 20.6 TFLOP/s at 1344, 4.0 at 14336.
  int64_t max_contraction = 1344;
  /// M1 contracts multiples of this depth only, else gives zeros. ane-train;
  /// ANEForge contracts any depth over e5rt [X].
  static constexpr int64_t contraction_multiple = 32;
  /// log2 of the largest |sum of products| that is asked for: one bit of margin
  /// under overflow_from covers rounding.
  static constexpr int log2_max_sum = 14;
  /// |sum of products| past which the engine gives infinity or zero. ANEForge,
  /// M2 Pro and M5; 2^15 in the M6 study and MiniMax-H3-Swift.
  static constexpr float overflow_from = 32752.0f;
  /// log2 of the smallest product that the engine keeps. MiniMax-H3-Swift, M3
  /// Ultra; 2^-16 in the M6 study.
  static constexpr int log2_min_product = -14;
  /// Largest |x| that a slice at an offset of the last axis keeps on M1 and M2
  /// (the rule slice-width). ANEForge.
  static constexpr float max_sliced = 4094.0f;
  /// Programs are written in the ios16 dialect: the rule dialect, or what the
  /// self-test found.
  bool verbose_dialect = false;
};

/// Limits of a chip, named as find_chip reads it; std::invalid_argument with
/// the valid names otherwise.
Limits limits_of(std::string_view chip);

}  // namespace mlx_ane::mil
