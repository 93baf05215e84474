// Probes of the machine, for the benchmark: its peak and its bandwidth.
#include "kernels/probe.h"

#include <chrono>

#include "host/loops.h"

namespace mlx_ane::kernels {

double fma_peak(double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t rounds = 20000;
  auto start = Clock::now();
  double flops = 0.0, elapsed = 0.0;
  volatile float keep = 0.0f;
  // The mean, not the best moment: a busy neighbour slows GEMMs as it slows
  // this.
  while (elapsed < seconds) {
    keep = keep + host::loops().fma_rounds(rounds);
    flops += 2.0 * 12 * host::loops().lanes * rounds;
    elapsed = std::chrono::duration<double>(Clock::now() - start).count();
  }
  return flops / elapsed / 1e9;
}

void adam_traffic(float* p, const float* g, float* m, float* v, int64_t n) {
  host::loops().adam_traffic(p, g, m, v, n);
}

}  // namespace mlx_ane::kernels
