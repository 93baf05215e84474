// What each target_*.cpp includes before its target pragma, and the tables.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "host/half.h"
#include "host/loops.h"

namespace mlx_ane::host {

extern const Loops generic_loops;
extern const Loops neon_loops;
extern const Loops avx2_loops;
extern const Loops avx512_loops;

}  // namespace mlx_ane::host

using mlx_ane::host::AdamConstants;
using mlx_ane::host::HalfRowBits;
using mlx_ane::host::Loops;
using mlx_ane::host::Prefetch;
using mlx_ane::host::RowNorm;
