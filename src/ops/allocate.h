// Memory of an op's output.
#pragma once

#include <vector>

#include "mlx/mlx.h"

namespace mlx_ane {

/// Gives `out` a new buffer. A large one asks for huge pages, where the system
/// gives them on request: MLX returns such a buffer to the system after use, so
/// that every step would fault all of its small pages in again.
void allocate(mlx::core::array& out);
void allocate(std::vector<mlx::core::array>& outputs);

}  // namespace mlx_ane
