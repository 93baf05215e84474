// The emulated Neural Engine as a device: MIL programs run on the CPU.
#pragma once

#include <memory>

#include "device/device.h"

namespace mlx_ane {

std::unique_ptr<Device> make_emulated_device();

} // namespace mlx_ane
