// Chooses the implementation and thread count behind the sgemm seam.
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

std::atomic<bool> use_reference{false};

int default_threads() {
  auto set = host::count_variable("MLX_ANE_BLAS_THREADS", 1);
  constexpr int64_t most = std::numeric_limits<int>::max();
  return set ? static_cast<int>(std::min(*set, most)) : host::usable_cores();
}

std::atomic<int>& thread_count() {
  static std::atomic<int> count = [] {
    int threads = default_threads();
    vendor::set_threads(threads);
    return threads;
  }();
  return count;
}

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
  if (m == 0 || n == 0) {
    return;
  }
  // The reference takes any k; a BLAS may reject the leading dimensions of k =
  // 0.
  bool plain = k == 0 || is_reference();
  if (!plain) {
    thread_count();
  }
  (plain ? reference::sgemm : vendor::sgemm)(
      trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

std::string name() {
  return is_reference() ? "reference loops" : vendor::name();
}

void set_threads(int threads) {
  if (threads < 0) {
    throw std::invalid_argument(
        "[mlx_ane.set_blas_threads] got " + std::to_string(threads) +
        ", need 0 or more, pass 0 for the default.");
  }
  int count = threads == 0 ? default_threads() : threads;
  thread_count() = count;
  vendor::set_threads(count);
}

int threads() {
  return thread_count();
}

void set_implementation(const std::string& implementation) {
  if (implementation != "fast" && implementation != "reference") {
    throw std::invalid_argument(
        "[mlx_ane.set_blas_implementation] got \"" + implementation +
        "\", need \"fast\" or \"reference\", pass one of them.");
  }
  use_reference = implementation == "reference";
}

std::string implementation() {
  return is_reference() ? "reference" : "fast";
}

bool is_reference() {
  return use_reference.load(std::memory_order_relaxed);
}

}  // namespace mlx_ane::blas
