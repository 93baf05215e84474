// One program tried on one route, with the time of each step: the self-test's
// tool.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device/device.h"

namespace mlx_ane::apple {

/// Elements of an fp16 tensor, dense in row-major order.
using Halves = std::vector<uint16_t>;

struct Trial {
  std::vector<Halves> outputs;
  double compile_seconds = 0;
  double first_seconds = 0;
  /// Fastest of the later calls; 0 without any.
  double best_seconds = 0;
  /// Elements that the first call did not write.
  int64_t unwritten = 0;
};

/// Compiles `source` on a route, fills its inputs, evaluates 1 + repeats times
/// and reads the outputs. Throws DeviceError.
Trial run_trial(
    const std::string& route,
    const Source& source,
    const std::vector<Halves>& inputs,
    int repeats);

}  // namespace mlx_ane::apple
