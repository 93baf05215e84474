// The sgemm seam over Apple's Accelerate.
#include "blas/accelerate_abi.h"
#include "blas/backend.h"

namespace mlx_ane::blas::vendor {

namespace {

constexpr int row_major = 101;
constexpr int no_trans = 111;
constexpr int trans = 112;

}  // namespace

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
  cblas_sgemm(
      row_major,
      trans_a ? trans : no_trans,
      trans_b ? trans : no_trans,
      static_cast<int>(m),
      static_cast<int>(n),
      static_cast<int>(k),
      alpha,
      a,
      static_cast<int>(lda),
      b,
      static_cast<int>(ldb),
      beta,
      c,
      static_cast<int>(ldc));
}

std::string name() {
  return "Accelerate";
}

// Accelerate spreads a call over the matrix units by itself.
void set_threads(int) {
}

}  // namespace mlx_ane::blas::vendor
