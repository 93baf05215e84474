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

/// The engine through one route, one of ane_routes().
std::unique_ptr<Device> make_ane_device(const std::string& route);

}  // namespace mlx_ane
