// GEMM on matrices of any float type and strides, accumulated in fp32 by the
// BLAS.
#pragma once

#include "kernels/matrix.h"

namespace mlx_ane::blas {

/// c (m, n) = a (m, k) @ b (k, n) [+ bias, a (1, n) view, on every row].
/// Any type and strides for a, b and bias; c is row-major in its own type and
/// is overwritten. k = 0 gives zeros (or the bias). Half types are converted by
/// panel.
void gemm(
    const MatrixView& a,
    const MatrixView& b,
    const MatrixView* bias,
    const MatrixOut& c);

}  // namespace mlx_ane::blas
