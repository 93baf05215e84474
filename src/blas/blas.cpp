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
