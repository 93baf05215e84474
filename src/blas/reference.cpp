// Plain loops for sgemm: the algorithmic reference, and the "before" of bench.
#include "blas/backend.h"

namespace mlx_ane::blas::reference {

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
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0.0f;
      for (int64_t p = 0; p < k; ++p) {
        float left = trans_a ? a[p * lda + i] : a[i * lda + p];
        float right = trans_b ? b[j * ldb + p] : b[p * ldb + j];
        sum += left * right;
      }
      // As in every BLAS, beta = 0 must not read C: it may hold NaN.
      float* out = c + i * ldc + j;
      *out = alpha * sum + (beta == 0.0f ? 0.0f : beta * *out);
    }
  }
}

}  // namespace mlx_ane::blas::reference
