// Memory of the outputs of our primitives, kept when freed for the next ones.
#pragma once

#include <cstddef>
#include <vector>

#include "mlx/mlx.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// Gives the output its memory. On a machine without a GPU, MLX returns freed
/// memory to the system, which clears every page anew: up to a quarter of the
/// time of a product. So large buffers of ours are kept for the next outputs of
/// their size, as long as such are asked for and up to a limit; MLX counts them
/// as active and never donates one.
/// With a GPU, MLX has a cache of its own.
void allocate(mx::array& out);
void allocate(std::vector<mx::array>& outputs);

/// MLX_ANE_OUTPUT_CACHE in bytes, 1 GiB where it is not set; at most what was
/// set, a quarter of memory at first. What exceeds a new limit is returned.
size_t kept_output_limit();
void set_kept_output_limit(size_t bytes);

/// Bytes kept now: freed and not in use again.
size_t kept_output_bytes();

/// Returns them to the system.
void clear_kept_outputs();

}  // namespace mlx_ane
