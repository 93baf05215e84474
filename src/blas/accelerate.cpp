// The sgemm seam over Apple's Accelerate.
#include "blas/accelerate_abi.h"
#include "blas/backend.h"

namespace mlx_ane::blas {

namespace {

constexpr int row_major = 101;
constexpr int no_trans = 111;
constexpr int trans = 112;

}  // namespace

void vendor::sgemm(const Sgemm& p) {
  cblas_sgemm(
      row_major,
      p.trans_a ? trans : no_trans,
      p.trans_b ? trans : no_trans,
      static_cast<int>(p.m),
      static_cast<int>(p.n),
      static_cast<int>(p.k),
      p.alpha,
      p.a,
      static_cast<int>(p.lda),
      p.b,
      static_cast<int>(p.ldb),
      p.beta,
      p.c,
      static_cast<int>(p.ldc));
}

std::string name() {
  return "Accelerate";
}

// Over the matrix units, which have no threads of ours.
bool spreads_calls() {
  return true;
}

}  // namespace mlx_ane::blas
