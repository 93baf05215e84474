// Probes of the machine, for the benchmark: its peak and its bandwidth.
#include "kernels/probe.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "kernels/loops.h"

namespace mlx_ane::kernels {

double fma_peak(double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t rounds = 20000;
  const double flops = 2.0 * 12 * loops().lanes * rounds;
  auto begin = Clock::now();
  double best = 0.0, elapsed = 0.0;
  volatile float keep = 0.0f;
  while (elapsed < seconds) {
    auto start = Clock::now();
    keep = keep + loops().fma_rounds(rounds);
    std::chrono::duration<double> once = Clock::now() - start;
    best = std::max(best, flops / once.count() / 1e9);
    elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
  }
  return best;
}

void adam_twin(float* p, const float* g, float* m, float* v, int64_t n) {
  loops().adam_twin(p, g, m, v, n);
}

}  // namespace mlx_ane::kernels
