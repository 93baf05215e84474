// Dispatches a matrix product to the BLAS or to a chip's accumulator.
#include "device/emulated/product.h"

#include <algorithm>

#include "blas/blas.h"
#include "device/emulated/exact.h"

namespace mlx_ane::emulated {

void multiply(
    const Product& p,
    const float* a,
    const float* b,
    const float* bias,
    float* c,
    Numerics numerics) {
  if (p.m == 0 || p.n == 0) {
    return;
  }
  if (p.k == 0) {  // BLAS and tiles want a depth
    for (int64_t i = 0; i < p.m; ++i) {
      std::fill_n(c + i * p.n, p.n, bias ? bias[i] : 0.0f);
    }
    return;
  }
  if (numerics != Numerics::fast) {
    multiply_exactly(p, a, b, bias, c, numerics);
    return;
  }
  if (bias) {
    for (int64_t i = 0; i < p.m; ++i) {
      std::fill_n(c + i * p.n, p.n, bias[i]);
    }
  }
  blas::sgemm(
      p.transpose_a,
      p.transpose_b,
      p.m,
      p.n,
      p.k,
      1.0f,
      a,
      p.transpose_a ? p.m : p.k,
      b,
      p.transpose_b ? p.k : p.n,
      bias ? 1.0f : 0.0f,
      c,
      p.n);
}

}  // namespace mlx_ane::emulated
