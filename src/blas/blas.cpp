// Empty products and the thread count, the same for every BLAS.
#include "blas/blas.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <stdexcept>

#include "blas/backend.h"
#include "host/cores.h"
#include "host/environment.h"

namespace mlx_ane::blas {

namespace {

int default_threads() {
  auto set = host::count_variable("MLX_ANE_BLAS_THREADS", 1);
  constexpr int64_t most = std::numeric_limits<int>::max();
  return set ? static_cast<int>(std::min(*set, most)) : host::usable_cores();
}

std::atomic<int>& thread_count() {
  static std::atomic<int> count = default_threads();
  return count;
}

/// C = beta * C, where beta = 0 must not read C: it may hold NaN.
void scale(const Sgemm& p) {
  for (int64_t i = 0; i < p.m; ++i) {
    float* row = p.c + i * p.ldc;
    std::transform(row, row + p.n, row, [&](float x) {
      return p.beta == 0.0f ? 0.0f : p.beta * x;
    });
  }
}

}  // namespace

void sgemm(const Sgemm& p) {
  if (p.m == 0 || p.n == 0) {
    return;
  }
  if (p.k == 0) {  // a BLAS may reject its leading dimensions
    scale(p);
  } else {
    vendor::sgemm(p);
  }
}

void set_threads(int threads) {
  if (threads < 0) {
    throw std::invalid_argument(
        "[mlx_ane.set_blas_threads] got " + std::to_string(threads) +
        ", need 0 or more, pass 0 for the default.");
  }
  thread_count() = threads == 0 ? default_threads() : threads;
}

int threads() {
  return thread_count();
}

}  // namespace mlx_ane::blas
