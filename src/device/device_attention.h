// Attention on a device: one fused program for all heads, checked as matmuls
// are.
#pragma once

#include <memory>

#include "device/device.h"
#include "kernels/attention.h"
#include "trace/counters.h"

namespace mlx_ane {

/// out = softmax(scale q kᵀ + mask) v on the device or, where the call is
/// placed or fails, on the BLAS (see run_placed).
void run_attention(
    Device& device,
    const kernels::Attention& attention,
    const kernels::Heads& out,
    trace::Layer& layer);

}  // namespace mlx_ane
