// The loops for any CPU: four lanes, which every 64-bit CPU has.
#include "host/target.h"

#define MLX_ANE_LANES 4
#include "host/loops_body.h"

const Loops mlx_ane::host::generic_loops = loops_of("generic");
