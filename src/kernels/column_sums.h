// Sums over the rows of a matrix: the gradient of a bias.
#pragma once

#include "host/matrix.h"

namespace mlx_ane::kernels {

/// out[c] = Σ_r x(r, c), accumulated in double, rounded to `type`. Sums in fp32
/// drift when the addends carry few bits, as a device's fp16 outputs do: every
/// addition ties, and ties go one way.
void column_sums(const MatrixView& x, Float type, void* out);

}  // namespace mlx_ane::kernels
