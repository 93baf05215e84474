// SwiGLU: forward and backward in one read each.
#pragma once

#include "host/matrix.h"

namespace mlx_ane::kernels {

/// out = gate * sigmoid(gate) * up over n elements of one type.
void swiglu_forward(
    const void* gate, const void* up, Float type, void* out, int64_t n);

/// d_gate = d_out up sigmoid(gate) (1 + gate (1 - sigmoid(gate))),
/// d_up = d_out gate sigmoid(gate). Outputs may alias the inputs.
void swiglu_backward(
    const void* gate,
    const void* up,
    const void* d_out,
    Float type,
    void* d_gate,
    void* d_up,
    int64_t n);

}  // namespace mlx_ane::kernels
