// Limits of each chip; docs/limits.md names the reports.
#include "device/limits.h"

#include <stdexcept>

namespace mlx_ane {

Limits limits_of(const std::string& chip) {
  Limits limits;
  limits.chip = chip;
  if (chip == "h13" || chip == "h14") { // M1, M2
    limits.max_axis = 16384;
    limits.verbose_dialect = true;
    return limits;
  }
  if (chip == "h15" || chip == "h15g") { // M3
    limits.max_axis = 16384;
    return limits;
  }
  if (chip == "h16" || chip == "h16g" || chip == "h17" || chip == "h17s" ||
      chip == "h18g") { // M4, M5, M6
    return limits;
  }
  throw std::invalid_argument(
      "[mlx_ane] got chip \"" + chip +
      "\", need one of h13, h14, h15, h15g, h16, h16g, h17, h17s, h18g.");
}

} // namespace mlx_ane
