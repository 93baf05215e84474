// How a matmul is cut to fit an engine: buckets of rows, splits of K, tiles of
// N.
#pragma once

#include <cstdint>
#include <vector>

#include "mil/limits.h"

namespace mlx_ane {

using mil::Limits;
using mil::limits_of;

/// natural: x [1,1,S,K], w [1,1,N,K], y = x wᵀ [1,1,S,N]. No host transpose.
/// channels_first: x [1,K,1,S], w [1,K,1,N], reshaped and contracted over K.
enum class Layout { natural, channels_first };

/// `size` elements from `begin`, padded with zeros to `padded` in the program.
struct Tile {
  int64_t begin;
  int64_t size;
  int64_t padded;
};

/// Every combination of a row tile, a depth tile and a column tile is one call;
/// calls over depth are summed in fp32 on the host.
struct MatmulPlan {
  Layout layout;
  std::vector<Tile> rows;
  std::vector<Tile> depth;
  std::vector<Tile> columns;

  int64_t calls() const {
    return rows.size() * depth.size() * columns.size();
  }
  int64_t max_bucket() const {
    return rows.front().padded;  // tiles are of the largest bucket first
  }
};

/// Rows (tokens) a program is compiled for; longer inputs are tiled.
inline constexpr int64_t row_buckets[] = {64, 128, 256, 512, 1024, 2048};

/// The bucket that holds `rows`, or the largest.
int64_t row_bucket(int64_t rows);

/// Plan of y (s, n) = x (s, k) w (n, k)ᵀ; s, k and n are at least 1.
MatmulPlan plan_matmul(
    int64_t s,
    int64_t k,
    int64_t n,
    const Limits& limits,
    Layout layout = Layout::natural);

}  // namespace mlx_ane
