// The sgemm seam: one header, one body a BLAS (openblas, accelerate,
// reference).
#pragma once

#include <cstdint>
#include <string>

#include "kernels/matrix.h"

namespace mlx_ane::blas {

/// C (m, n) = alpha * op(A) (m, k) * op(B) (k, n) + beta * C, row-major fp32.
void sgemm(
    bool trans_a,
    bool trans_b,
    int64_t m,
    int64_t n,
    int64_t k,
    float alpha,
    const float* a,
    int64_t lda,
    const float* b,
    int64_t ldb,
    float beta,
    float* c,
    int64_t ldc);

/// Library and kernel name, for example "OpenBLAS 0.3.34 SkylakeX".
std::string name();

/// Threads of one GEMM call. 0 restores the default: MLX_ANE_BLAS_THREADS, else
/// the cores that this process may use now.
void set_threads(int threads);
int threads();

/// "fast" (this machine's BLAS) or "reference": scalar loops at -O2, for Adam
/// too.
void set_implementation(const std::string& implementation);
std::string implementation();
bool is_reference();

}  // namespace mlx_ane::blas
