// The loops for arm64: NEON, with its half conversions.
#include "host/target.h"

#if defined(__aarch64__)

#define MLX_ANE_LANES 4
#define MLX_ANE_NEON
#include "host/loops_body.h"

const Loops mlx_ane::host::neon_loops = loops_of("neon");

#endif
