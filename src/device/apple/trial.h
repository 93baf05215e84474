// One program tried on one route, with the time of each step: the self-test's
// tool.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "device/apple/apple.h"
#include "device/device.h"

namespace mlx_ane::apple {

/// Elements of an fp16 tensor, dense in row-major order.
using Halves = std::vector<uint16_t>;

struct Trial {
  /// Of each call that was asked for, in the program's order.
  std::vector<Halves> outputs;
  double compile_seconds = 0;  // and load
  double first_seconds = 0;
  /// Fastest of the later calls; 0 without any.
  double best_seconds = 0;
  /// Elements that the calls did not write.
  int64_t unwritten = 0;
  /// What the engine told of the program.
  std::map<std::string, std::string> facts;
};

/// Compiles `source`, fills its inputs and evaluates, once for each set of
/// inputs; the last set `repeats` times more. `beside` is a program that is
/// loaded and run after the first call, and stays, if it has a text. Throws
/// DeviceError.
Trial run_trial(
    const Way& way,
    const Source& source,
    const std::vector<std::vector<Halves>>& sets,
    int repeats,
    const Source& beside);

/// Why this way cannot be gone here, or nothing if it can.
std::optional<std::string> unavailable(const Way& way);

}  // namespace mlx_ane::apple
