// Dispatches a matrix product to the BLAS or to a chip's accumulator.
#include "device/emulated/product.h"

#include <algorithm>

#include "device/emulated/exact.h"
#include "kernels/gemm.h"

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
  if (p.k == 0) {  // neither BLAS nor tiles take it
    for (int64_t i = 0; i < p.m; ++i) {
      std::fill_n(c + i * p.n, p.n, bias ? bias[i] : 0.0f);
    }
    return;
  }
  if (numerics > Numerics::fast) {
    multiply_exactly(p, a, b, bias, c, numerics);
    return;
  }
  if (bias) {
    for (int64_t i = 0; i < p.m; ++i) {
      std::fill_n(c + i * p.n, p.n, bias[i]);
    }
  }
  kernels::sgemm(
      {.trans_a = p.transpose_a,
       .trans_b = p.transpose_b,
       .m = p.m,
       .n = p.n,
       .k = p.k,
       .a = a,
       .lda = p.transpose_a ? p.m : p.k,
       .b = b,
       .ldb = p.transpose_b ? p.k : p.n,
       .beta = bias ? 1.0f : 0.0f,
       .c = c,
       .ldc = p.n});
}

}  // namespace mlx_ane::emulated
