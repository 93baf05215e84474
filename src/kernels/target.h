// What each target_*.cpp includes before its target pragma, and the tables.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernels/half.h"
#include "kernels/loops.h"
#include "kernels/pack.h"

namespace mlx_ane::kernels {

extern const Loops generic_loops;
extern const Loops neon_loops;
extern const Loops avx2_loops;
extern const Loops avx512_loops;

}  // namespace mlx_ane::kernels

using mlx_ane::kernels::AdamConstants;
using mlx_ane::kernels::HalfRowBits;
using mlx_ane::kernels::Loops;
using mlx_ane::kernels::Prefetch;
using mlx_ane::kernels::RowNorm;
