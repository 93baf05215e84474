// What a BLAS body provides beside blas.h's name() and spreads_calls().
#pragma once

#include "blas/blas.h"

namespace mlx_ane::blas::vendor {

/// The library's own call: openblas.cpp or accelerate.cpp. m, n and k are
/// positive and fit the library's integers.
void sgemm(const Sgemm& product);

}  // namespace mlx_ane::blas::vendor
