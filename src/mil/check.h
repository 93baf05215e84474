// Checks a MIL program against what is reported about the engine and its
// compiler.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mil/limits.h"
#include "mil/program.h"
#include "mil/rules.h"

namespace mlx_ane::mil {

struct Finding {
  const Rule* rule = nullptr;
  /// The function that it is about; nullptr for the whole program.
  const Function* function = nullptr;
  /// "main, line 12: y = concat" or "main".
  std::string where;
  std::string what;
  Location location;
};

struct CheckOptions {
  Limits limits;
  /// First number of the version of macOS.
  int macos = 26;
  /// Rules of MIL itself too, which whoever runs the program has anyway.
  bool language = true;
  /// Whether a rule is looked at; without it, every one is.
  std::function<bool(const Rule&)> wanted = {};
};

/// Findings in the order of the text, at most 1000.
std::vector<Finding> check(const Program& program, const CheckOptions& options);

/// The same by name: `chip` as for limits_of, `macos` a version such as "26" or
/// "26.5". std::invalid_argument for an unknown chip, version or rule.
std::vector<Finding> check(
    const Program& program,
    const std::string& chip,
    const std::string& macos,
    const Allow& allow);

}  // namespace mlx_ane::mil
