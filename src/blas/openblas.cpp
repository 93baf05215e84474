// The sgemm seam over OpenBLAS (scipy-openblas32, whose symbols are prefixed).
#include <cblas.h>

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
  scipy_cblas_sgemm(
      CblasRowMajor,
      trans_a ? CblasTrans : CblasNoTrans,
      trans_b ? CblasTrans : CblasNoTrans,
      static_cast<blasint>(m),
      static_cast<blasint>(n),
      static_cast<blasint>(k),
      alpha,
      a,
      static_cast<blasint>(lda),
      b,
      static_cast<blasint>(ldb),
      beta,
      c,
      static_cast<blasint>(ldc));
}

std::string name() {
  // get_config() reads "OpenBLAS 0.3.34 DYNAMIC_ARCH ...".
  std::string config = scipy_openblas_get_config();
  auto end = config.find(' ', config.find(' ') + 1);
  return config.substr(0, end) + " " + scipy_openblas_get_corename();
}

void set_threads(int threads) {
  scipy_openblas_set_num_threads(threads);
}

}  // namespace mlx_ane::blas::vendor
