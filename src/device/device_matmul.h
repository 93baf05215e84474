// The device's share of a matmul: every tile packed, evaluated, checked, unpacked.
#pragma once

#include "device/runner.h"

namespace mlx_ane {

/// Runs the whole call on the device; throws DeviceError at the first tile that
/// fails, with y in an unspecified state.
void run_on_device(
    Device& device,
    const MatmulCall& call,
    const RunnerSettings& settings);

} // namespace mlx_ane
