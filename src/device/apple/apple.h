// The Neural Engine as a Device.
#pragma once

#include <memory>
#include <string>

#include "device/device.h"

namespace mlx_ane {

/// The engine through AppleNeuralEngine.framework, or through Espresso where
/// MLX_ANE_ROUTE or the stored verdict says so. Never throws for a machine
/// without an engine: unavailable() says why.
std::unique_ptr<Device> make_ane_device();

/// The engine through one route, "in_memory" or "e5rt".
std::unique_ptr<Device> make_ane_device(const std::string& route);

}  // namespace mlx_ane
