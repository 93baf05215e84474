// GEMM shared among threads: fp32 as the BLAS takes it, or any float type and
// strides.
#pragma once

#include "blas/blas.h"
#include "host/matrix.h"

namespace mlx_ane::kernels {

/// blas::sgemm in parts that threads take one by one. Results depend on shape
/// and number of threads alone.
void sgemm(const blas::Sgemm& product);

/// c (m, n) = a (m, k) @ b (k, n) [+ bias, a (1, n) view, on every row].
/// Any type and strides for a, b and bias; c is row-major in its own type and
/// is overwritten. k = 0 gives zeros (or the bias). Half types are converted by
/// panel.
void gemm(
    const MatrixView& a,
    const MatrixView& b,
    const MatrixView* bias,
    const MatrixOut& c);

}  // namespace mlx_ane::kernels
