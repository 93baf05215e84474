// How a product is divided into parts that several threads take one by one.
#pragma once

#include <cstdint>

namespace mlx_ane::kernels {

/// C (m, n) in rows x cols tiles, each in `depth` parts of k that are summed in
/// order. All parts but the last of a side are equally long.
struct Partition {
  int64_t rows, cols, depth;
  int64_t height, width, length;  // of one part: of m, n and k
  int64_t parts() const {
    return rows * cols * depth;
  }
};

/// One part if the product is too small to share, otherwise two or four a
/// thread, divided where it costs the least.
Partition partition(bool trans_a, int64_t m, int64_t n, int64_t k, int threads);

}  // namespace mlx_ane::kernels
