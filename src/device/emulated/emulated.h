// The emulated Neural Engine as a device: MIL programs run on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "device/device.h"
#include "mil/rules.h"

namespace mlx_ane {

std::unique_ptr<Device> make_emulated_device();

namespace emulated {

/// Which rules are enforced: `strict` all, disputed ones in their stricter
/// reading; `program` those by which every report has a program refused; `off`
/// none.
enum class Level { off, program, strict };
const char* to_string(Level level);
/// std::invalid_argument with the valid names otherwise.
Level level_named(std::string_view name);

struct Options {
  /// As mil::find_chip reads it; kept as its architecture.
  std::string chip = "h16g";
  /// Fixed-point accumulators and tables as reported of the chip, instead of
  /// fp32.
  bool exact = false;
  Level level = Level::strict;
  /// Rules that are not enforced. The count of compilations is entangled with
  /// that of resident programs, so it is off until asked for.
  mil::Allow allow = {"compiles"};
  /// Operations that no program may have: a chip whose compiler refuses them.
  std::set<std::string> refuse;
  /// A program whose constants and values need more is refused.
  int64_t memory_budget = int64_t{4} << 30;
};

/// With the chip by its architecture; std::invalid_argument for an unknown chip
/// or rule.
Options checked(Options options);

/// Options of the device, at first those of MLX_ANE_EMULATED. The chip and
/// rules hold for programs compiled later, `exact` at once.
Options options();
/// Throws std::invalid_argument for an unknown chip or rule.
void configure(const Options& options);

/// Compilations since the start or the last reset, and programs loaded now.
struct Usage {
  int64_t compiles = 0;
  int64_t resident = 0;
  uint64_t weight_bytes = 0;  // of resident programs
  bool poisoned = false;      // by a tile operation
};
Usage usage();

/// A fresh process: options of the environment, no compilations counted, not
/// poisoned, no faults. Loaded programs stay loaded.
void reset();

}  // namespace emulated
}  // namespace mlx_ane
