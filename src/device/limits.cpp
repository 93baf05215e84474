// Limits of each chip; docs/limits.md names the reports.
#include "device/limits.h"

#include <stdexcept>

namespace mlx_ane {

Limits limits_of(const std::string& chip) {
  Limits limits;
  limits.chip = chip;
  bool m1 = chip == "h13", m2 = chip == "h14";
  bool m3 = chip == "h15" || chip == "h15g";
  if (m1 || m2) {
    limits.verbose_dialect = true;
    limits.fp32_io = false;
    limits.cast = false;
  }
  if (m1) {
    limits.max_kernel_width = 13;
    limits.multi_chunk_files = false;
  }
  if (m1 || m2 || m3) {
    limits.max_axis = 16384;
    limits.narrow_slices = true;
    return limits;
  }
  if (chip == "h16" || chip == "h16g" || chip == "h17" || chip == "h17s" ||
      chip == "h18g") {  // M4, M5, M6
    return limits;
  }
  throw std::invalid_argument(
      "[mlx_ane] got chip \"" + chip +
      "\", need one of h13, h14, h15, h15g, h16, h16g, h17, h17s, h18g.");
}

}  // namespace mlx_ane
