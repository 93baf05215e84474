// Chooses the implementation and thread count behind the sgemm seam.
#include "blas/blas.h"

#include <atomic>
#include <charconv>
#include <cstdlib>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "blas/backend.h"

namespace mlx_ane::blas {

namespace {

std::atomic<bool> use_reference{false};

int default_threads() {
  const char* value = std::getenv("MLX_ANE_BLAS_THREADS");
  if (value == nullptr || *value == '\0') {
    return std::max(1u, std::thread::hardware_concurrency());
  }
  std::string_view text(value);
  int threads = 0;
  auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), threads);
  if (error != std::errc() || end != text.data() + text.size() || threads < 1) {
    throw std::invalid_argument(
        "[mlx_ane.blas] got MLX_ANE_BLAS_THREADS=" + std::string(text) +
        ", need a positive integer, set it to a count of threads or unset it.");
  }
  return threads;
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
