// What each BLAS body provides; blas.cpp chooses between it and plain loops.
#pragma once

#include <cstdint>
#include <string>

namespace mlx_ane::blas {

/// Arguments of sgemm in blas.h, in the same order. m, n and k are positive and
/// fit the library's integers.
using Sgemm = void(
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

/// The machine's BLAS: openblas.cpp or accelerate.cpp.
namespace vendor {
Sgemm sgemm;
/// Library, version and kernel, for example "OpenBLAS 0.3.34 SkylakeX".
std::string name();
/// Threads that one call may use; a library without the switch ignores it.
void set_threads(int threads);
}  // namespace vendor

/// Plain loops, reference.cpp.
namespace reference {
Sgemm sgemm;
}  // namespace reference

}  // namespace mlx_ane::blas
