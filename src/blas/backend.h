// What each BLAS body provides; blas.cpp chooses between it and plain loops.
#pragma once

#include <string>

#include "blas/blas.h"

namespace mlx_ane::blas {

/// The machine's BLAS: openblas.cpp or accelerate.cpp. m, n and k are positive
/// and fit the library's integers.
namespace vendor {
void sgemm(const Sgemm& product);
std::string name();
bool spreads_calls();
}  // namespace vendor

/// Plain loops, reference.cpp.
namespace reference {
void sgemm(const Sgemm& product);
}  // namespace reference

}  // namespace mlx_ane::blas
