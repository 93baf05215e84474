// Bytes of matrices, for records of memory traffic.
#pragma once

#include "host/matrix.h"

namespace mlx_ane {

/// What reading or writing each of them once moves.
template <class... Matrices>
int64_t bytes_of(const Matrices&... m) {
  return (
      (m.rows * m.cols * static_cast<int64_t>(size_of(m.type))) + ... +
      int64_t{0});
}

}  // namespace mlx_ane
