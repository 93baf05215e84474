// The loops for any CPU: four lanes, which every 64-bit CPU has.
#include "kernels/target.h"

#define MLX_ANE_LANES 4
#include "kernels/loops_body.h"

const Loops mlx_ane::kernels::generic_loops = loops_of("generic");
