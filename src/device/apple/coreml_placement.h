// Where Core ML runs a program: by its plan, and by the rounding of an answer.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>

#include "device/apple/objc.h"
#include "device/fingerprint.h"
#include "mil/program.h"

namespace mlx_ane::apple::coreml {

/// What an MLComputePlan says of a program.
struct Planned {
  /// It names the engine for every operation for which it names a device.
  bool engine = false;
  /// The first operation that it would run elsewhere, as a sentence.
  std::optional<std::string> elsewhere;
};
/// Neither of both for nil, or a plan that names no device at all.
Planned read_plan(id plan);

/// Whether a program is one product of its two inputs, as matrices, so that
/// its rounding can be asked for.
bool is_product(const mil::Program& program, const Source& source);

/// Runs such a program once on known operands; `evaluate` as Executable's.
/// `bytes` is the size of each surface. Throws DeviceError, also where the
/// answer is wrong whoever computed it.
Fingerprint ask_rounding(
    const Source& source,
    size_t bytes,
    const std::function<
        void(std::span<Surface* const>, std::span<Surface* const>)>& evaluate);

}  // namespace mlx_ane::apple::coreml
