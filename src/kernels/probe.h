// Probes of the machine, for the benchmark: its peak and its bandwidth.
#pragma once

#include <cstdint>

namespace mlx_ane::kernels {

/// fp32 fused multiply-adds of one thread for about `seconds`, in GFLOP/s.
double fma_peak(double seconds);

/// The memory traffic of adam() and nothing else: four reads, three writes.
/// Leaves meaningless values.
void adam_traffic(float* p, const float* g, float* m, float* v, int64_t n);

}  // namespace mlx_ane::kernels
