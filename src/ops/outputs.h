// A cache of freed outputs, by size.
#pragma once

#include <cstddef>
#include <vector>

#include "mlx/mlx.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// Allocates the output. Caches large freed outputs: without a GPU every large
/// MLX allocation page-faults, up to a quarter of the time of a product. MLX
/// counts cached buffers as active and never donates one. With a GPU, MLX has a
/// cache of its own.
void allocate(mx::array& out);
void allocate(std::vector<mx::array>& outputs);

/// MLX_ANE_OUTPUT_CACHE in bytes, 1 GiB where it is not set; at most what was
/// set, a quarter of memory at first. What exceeds a new limit is returned.
size_t kept_output_limit();
void set_kept_output_limit(size_t bytes);

/// Bytes cached now: freed and not in use again.
size_t kept_output_bytes();

/// Returns cached buffers to the system.
void clear_kept_outputs();

}  // namespace mlx_ane
