// Hands the limits of a chip to mil::check.
#include "device/check.h"

#include <algorithm>
#include <charconv>
#include <stdexcept>

#include "device/limits.h"

namespace mlx_ane {

namespace {

int leading_number(const std::string& text, size_t start) {
  int number = 0;
  auto end = text.data() + text.size();
  std::from_chars(std::min(text.data() + start, end), end, number);
  return number;
}

void check_allow(const std::vector<std::string>& allow) {
  for (auto& entry : allow) {
    if (entry != "disputed" && !mil::find_rule(entry)) {
      throw std::invalid_argument(
          "[mlx_ane.mil.check] allow has '" + entry +
          "', need \"disputed\" or ids of mlx_ane.mil.rules().");
    }
  }
}

}  // namespace

std::vector<mil::Finding> check_for_chip(
    const mil::Program& program,
    const std::string& chip,
    const std::string& macos,
    const std::vector<std::string>& allow) {
  auto limits = limits_of(chip);
  mil::CheckOptions options;
  options.chip = chip;
  options.generation = leading_number(chip, 1);
  options.macos = leading_number(macos, 0);
  if (options.macos < 12) {
    throw std::invalid_argument(
        "[mlx_ane.mil.check] macos is '" + macos +
        "', need a version such as \"26\".");
  }
  check_allow(allow);
  options.max_axis = limits.max_axis;
  options.max_channels = limits.max_channels;
  options.max_rank = limits.max_rank;
  options.min_width = limits.min_width;
  options.narrow_channels = limits.narrow_channels;
  options.row_alignment = static_cast<int64_t>(limits.row_alignment);
  options.max_conv_channels = limits.max_conv_channels;
  options.max_kernel_width = limits.max_kernel_width;
  options.max_blobs = limits.max_blobs;
  options.max_blobs_with_scalar = limits.max_blobs_with_scalar;
  options.max_contraction = limits.max_contraction;
  options.address_window = limits.address_window;
  options.verbose_dialect = limits.verbose_dialect;
  options.fp32_io = limits.fp32_io;
  options.cast = limits.cast;
  options.multi_chunk_files = limits.multi_chunk_files;
  options.narrow_slices = limits.narrow_slices;
  options.allow = {allow.begin(), allow.end()};
  return mil::check(program, options);
}

}  // namespace mlx_ane
