// Fused cross-entropy and SwiGLU: forward and backward in one read each.
#pragma once

#include "host/matrix.h"

namespace mlx_ane::kernels {

/// loss[t] = logsumexp(x_t) - (1 - s) x_t[target_t] - s mean(x_t) for the rows
/// x_t of logits (tokens, vocabulary), s = label_smoothing. Targets outside
/// 0 .. vocabulary - 1 give NaN. logsumexp (tokens) is kept for the backward.
void cross_entropy_forward(
    const MatrixView& logits,
    const int32_t* targets,
    float label_smoothing,
    float* loss,
    float* logsumexp);

/// d_logits(t, j) = d_loss[t] (softmax(x_t)[j] - (1 - s) [j = target_t]
/// - s / vocabulary), in the type of d_logits.
void cross_entropy_backward(
    const MatrixView& logits,
    const int32_t* targets,
    float label_smoothing,
    const float* logsumexp,
    const float* d_loss,
    const MatrixOut& d_logits);

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
