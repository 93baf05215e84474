// The loops for x86-64 with AVX2, FMA and F16C.
#include "host/target.h"

#if defined(__x86_64__)

// Code before this line is built for every CPU, code after it for this target.
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define MLX_ANE_LANES 8
#define MLX_ANE_AVX2
#include "host/loops_body.h"

const Loops mlx_ane::host::avx2_loops = loops_of("avx2");

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
