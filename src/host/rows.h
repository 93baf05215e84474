// Rows of a matrix view of any type and strides as contiguous fp32.
#pragma once

#include "host/matrix.h"

namespace mlx_ane::host {

/// Rows in place or in scratch: row i starts at data + i * ld.
struct FloatRows {
  const float* data;
  int64_t ld;
};

/// The whole view as fp32 rows: itself where it is that already, else converted
/// into `scratch` (rows x cols).
FloatRows float_rows(const MatrixView& x, float* scratch);

/// Row-major fp32 copy of the view, rows `ld` elements apart.
void copy_rows(const MatrixView& x, float* dst, int64_t ld);

/// The largest magnitude; NaN if there is one.
float largest(const MatrixView& x);

}  // namespace mlx_ane::host
