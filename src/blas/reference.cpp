// sgemm as plain loops, for comparison.
#include "blas/blas.h"

namespace mlx_ane::blas {

void sgemm_reference(const Sgemm& s) {
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      float sum = 0.0f;
      for (int64_t p = 0; p < s.k; ++p) {
        float left = s.trans_a ? s.a[p * s.lda + i] : s.a[i * s.lda + p];
        float right = s.trans_b ? s.b[j * s.ldb + p] : s.b[p * s.ldb + j];
        sum += left * right;
      }
      // As in every BLAS, beta = 0 must not read C: it may hold NaN.
      float* out = s.c + i * s.ldc + j;
      *out = s.alpha * sum + (s.beta == 0.0f ? 0.0f : s.beta * *out);
    }
  }
}

}  // namespace mlx_ane::blas
