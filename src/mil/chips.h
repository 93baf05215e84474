// Names of chips: "M1" to "M6" with Pro, Max or Ultra, and architectures.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace mlx_ane::mil {

/// A chip whose engine is known. What is reported holds for a generation; the
/// suffixes (h14c, h14g, ...) and Pro, Max and Ultra differ in cores.
struct Chip {
  /// 13 for M1 to 18 for M6.
  int generation;
  /// "M2", or "M2 Max" where that was asked for.
  std::string name;
  /// "h14", or "h14g" where that was asked for.
  std::string architecture;
};

/// The chip of a name in any case ("M2 Max", "m2-max") or of an architecture
/// with any suffix ("h14", "h14g"); nothing if it is unknown.
std::optional<Chip> find_chip(std::string_view text);

/// The same; std::invalid_argument in the name of `where` with what is known.
Chip chip_named(std::string_view text, const std::string& where = "mlx_ane");

}  // namespace mlx_ane::mil
