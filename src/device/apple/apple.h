// The Neural Engine as a Device.
#pragma once

#include <memory>
#include <string>

#include "device/device.h"

namespace mlx_ane {

/// The engine through the first route that this machine has, or through the one
/// that MLX_ANE_ROUTE or the stored verdict names. Never throws for a machine
/// without an engine: unavailable() says why.
std::unique_ptr<Device> make_ane_device();

/// One way into the engine; an empty word asks the environment and the verdict.
struct Way {
  std::string route;  // one of ane_routes()
  std::string staging =
      {};               // in_memory's files: "url" (a folder of ours) or "id"
  bool on_cpu = false;  // e5rt's CPU, to test who computed (fingerprint.h)
  /// Rows begin at multiples of so many bytes, where the engine tells nothing;
  /// 0 is 64. maderix#35 needs 128 on M5.
  size_t row_alignment = 0;
};

std::unique_ptr<Device> make_ane_device(const Way& way);
/// The engine through one route.
std::unique_ptr<Device> make_ane_device(const std::string& route);

}  // namespace mlx_ane
