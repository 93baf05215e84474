// Adam on Accelerate's vector functions, and the choice between it and the
// loop. The optimizers use the loop.
#pragma once

#include <cstdint>
#include <string>

#include "host/loops.h"

namespace mlx_ane::kernels {

/// One step on fp32 arrays, as host::Loops::adam.
using AdamLoop = decltype(host::Loops::adam);

/// Adam in tiles that stay in L1, each function of vDSP and vForce reading and
/// writing the tile. Differs from the loop by fp32 rounding.
void adam_accelerate(
    const float* p,
    const float* g,
    const float* m,
    const float* v,
    float* p_out,
    float* m_out,
    float* v_out,
    int64_t n,
    const host::AdamConstants& constants);

/// The faster of `portable` and adam_accelerate on this machine, timed once a
/// process in about a millisecond. `portable` where there is no Accelerate.
AdamLoop fastest_adam(AdamLoop portable);

/// "loop" or "vDSP", as fastest_adam chose.
std::string adam_implementation();

}  // namespace mlx_ane::kernels
