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
  static std::atomic<int> count = default_threads();
  return count;
}

}  // namespace

void sgemm(const Sgemm& p) {
  if (p.m == 0 || p.n == 0) {
    return;
  }
  // The reference takes k = 0; a BLAS may reject its leading dimensions.
  bool plain = p.k == 0 || is_reference();
  (plain ? reference::sgemm : vendor::sgemm)(p);
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
  thread_count() = threads == 0 ? default_threads() : threads;
}

int threads() {
  return thread_count();
}

bool spreads_calls() {
  return !is_reference() && vendor::spreads_calls();
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
