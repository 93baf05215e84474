// The loops for x86-64 with AVX-512 (F, BW, DQ, VL).
#include "host/target.h"

#if defined(__x86_64__)

// gcc 12 warns about its own header: the undefined operand of masked
// intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// Code before this line is built for every CPU, code after it for this target.
#if defined(__clang__)
#pragma clang attribute push(                               \
    __attribute__((target(                                  \
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c," \
        "prefer-512-bit"))),                                \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define MLX_ANE_LANES 16
#define MLX_ANE_AVX512
#include "host/loops_body.h"

const Loops mlx_ane::host::avx512_loops = loops_of("avx512");

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
