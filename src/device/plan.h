// Plans a matmul as tiles that fit an engine: buckets of rows, tiles of K and
// N.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mil/limits.h"

namespace mlx_ane {

using mil::Limits;
using mil::limits_of;

/// How operands lie in surfaces, and the program that multiplies them. The
/// self-test finds which a machine computes rightly; docs/apple.md has who
/// reports what.
enum class Layout {
  natural,         // x [1,1,S,K], w [1,1,N,K], x wᵀ
  channels_first,  // x [1,K,1,S], w [1,K,1,N], reshaped, xᵀ w by flags
  rank3,           // x [1,S,K], w [1,N,K], x wᵀ
  weight_first,    // w [1,N,K], x [1,K,S], w x [1,N,S]: no transpose
  transposed,      // as channels_first, transposed by operations of their own
  single,          // [1,1,S+N,K]: one input, the rows of w after those of x
};
inline constexpr Layout layouts[] = {
    Layout::natural,
    Layout::channels_first,
    Layout::rank3,
    Layout::weight_first,
    Layout::transposed,
    Layout::single,
};
const char* to_string(Layout layout);
/// std::invalid_argument with the valid names otherwise.
Layout layout_named(const std::string& name);

/// Whether the host packs x as (K, S), w as (K, N), and reads y as (N, S).
constexpr bool x_transposed(Layout layout) {
  return layout == Layout::channels_first || layout == Layout::transposed ||
         layout == Layout::weight_first;
}
constexpr bool w_transposed(Layout layout) {
  return layout == Layout::channels_first || layout == Layout::transposed;
}
constexpr bool y_transposed(Layout layout) {
  return layout == Layout::weight_first;
}

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
