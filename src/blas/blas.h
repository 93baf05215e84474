// The sgemm seam: one header, one body a BLAS (openblas or accelerate).
#pragma once

#include <cstdint>
#include <string>

namespace mlx_ane::blas {

/// C (m, n) = alpha * op(A) (m, k) * op(B) (k, n) + beta * C, row-major fp32.
struct Sgemm {
  bool trans_a = false;
  bool trans_b = false;
  int64_t m, n, k;
  float alpha = 1.0f;
  const float* a;
  int64_t lda;
  const float* b;
  int64_t ldb;
  float beta = 0.0f;
  float* c;
  int64_t ldc;
};

/// One call of the library. OpenBLAS runs it on this thread, Accelerate spreads
/// it as it sees fit: kernels::sgemm shares a product among threads.
void sgemm(const Sgemm& product);

/// The same as plain loops at -O2, to compare with.
void sgemm_reference(const Sgemm& product);

/// Library and kernel name, for example "OpenBLAS 0.3.34 SkylakeX".
std::string name();

/// Threads of one product. 0 restores the default: MLX_ANE_BLAS_THREADS, else
/// the cores that this process may use now.
void set_threads(int threads);
int threads();

/// Whether the library spreads a call over threads by itself.
bool spreads_calls();

}  // namespace mlx_ane::blas
