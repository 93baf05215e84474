// Cross-entropy of class indices: forward and backward in one read each.
#pragma once

#include "host/matrix.h"

namespace mlx_ane::kernels {

/// loss[t] = logsumexp(x_t) - (1 - s) x_t[target_t] - s mean(x_t) for the rows
/// x_t of logits (tokens, vocabulary), s = label_smoothing. A negative target
/// counts from the end; one outside -vocabulary .. vocabulary - 1 is ignored:
/// loss and gradient are 0. maximum and sum (tokens), of exp(x_t - maximum[t]),
/// are kept for the backward: apart, as their logsumexp would round the sum
/// away where logits are large. As in MLX, a row whose maximum is not finite
/// gives NaN.
void cross_entropy_forward(
    const MatrixView& logits,
    const int32_t* targets,
    float label_smoothing,
    float* loss,
    float* maximum,
    float* sum);

/// d_logits(t, j) = d_loss[t] (softmax(x_t)[j] - (1 - s) [j = target_t]
/// - s / vocabulary), in the type of d_logits.
void cross_entropy_backward(
    const MatrixView& logits,
    const int32_t* targets,
    float label_smoothing,
    const float* maximum,
    const float* sum,
    const float* d_loss,
    const MatrixOut& d_logits);

}  // namespace mlx_ane::kernels
