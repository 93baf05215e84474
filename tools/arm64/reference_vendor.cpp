// The sgemm seam over plain loops, where the tests have no BLAS.
#include "blas/backend.h"

namespace mlx_ane::blas::vendor {

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
    int64_t ldc) {
  reference::sgemm(
      trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

std::string name() {
  return "OpenBLAS replaced by plain loops";
}

void set_threads(int) {
}

}  // namespace mlx_ane::blas::vendor
