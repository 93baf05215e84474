// The loops for arm64: NEON, with its half conversions.
#include "kernels/target.h"

#if defined(__aarch64__)

#define MLX_ANE_LANES 4
#define MLX_ANE_NEON
#include "kernels/loops_body.h"

const Loops mlx_ane::kernels::neon_loops = loops_of("neon");

#endif
