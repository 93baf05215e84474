// The sgemm seam over plain loops, where the tests have no BLAS.
#include "blas/backend.h"

namespace mlx_ane::blas {

void vendor::sgemm(const Sgemm& product) {
  sgemm_reference(product);
}

std::string name() {
  return "OpenBLAS replaced by plain loops";
}

bool spreads_calls() {
  return false;
}

}  // namespace mlx_ane::blas
