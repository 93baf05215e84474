// Probes of the machine, for the benchmark: its peak and its bandwidth.
#pragma once

#include <cstdint>

#include "kernels/adam.h"

namespace mlx_ane::kernels {

/// fp32 fused multiply-adds of one thread for about `seconds`, in GFLOP/s.
double fma_peak(double seconds);

/// The memory traffic of adam() and nothing else: four reads, three writes.
/// Leaves meaningless values.
void adam_twin(float* p, const float* g, float* m, float* v, int64_t n);

/// A step of adam() in ten passes over whole arrays, each one vector function,
/// as code without a fused kernel does it; t is n elements of work.
void adam_passes(
    float* p,
    const float* g,
    float* m,
    float* v,
    float* t,
    int64_t n,
    const AdamStep& step);

}  // namespace mlx_ane::kernels
