// Adam on Accelerate's vector functions; elsewhere, own loops stand in for
// them.
#pragma once

#include <cstdint>

#include "host/loops.h"

namespace mlx_ane::kernels {

/// Whether adam_accelerate calls Accelerate here, and not the stand-ins.
bool has_accelerate();

/// One step on fp32 arrays, as host::Loops::adam: in tiles that stay in L1,
/// each function of vDSP and vForce reading and writing the tile.
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

}  // namespace mlx_ane::kernels
