// Checks a MIL program for a chip: mil::check with the chip's limits.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "mil/check.h"

namespace mlx_ane {

/// `chip` as for limits_of, `macos` a version such as "26" or "26.5", `allow`
/// rules to leave out. std::invalid_argument for an unknown chip, version or
/// rule, with what is valid.
std::vector<mil::Finding> check_for_chip(
    const mil::Program& program,
    const std::string& chip,
    const std::string& macos = "26",
    const std::vector<std::string>& allow = {});

}  // namespace mlx_ane
