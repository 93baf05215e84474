// Limits of each chip; docs/limits.md names the reports.
#include "mil/limits.h"

#include "mil/chips.h"
#include "mil/rules.h"

namespace mlx_ane::mil {

Limits limits_of(std::string_view name) {
  auto chip = chip_named(name);
  Limits limits;
  limits.chip = chip.architecture;
  limits.generation = chip.generation;
  limits.verbose_dialect = find_rule("dialect")->applies_to(chip.generation);
  if (chip.generation == 13) {
    limits.max_kernel_width = 13;
  }
  if (chip.generation <= 15) {
    limits.max_axis = 16384;
  }
  return limits;
}

}  // namespace mlx_ane::mil
