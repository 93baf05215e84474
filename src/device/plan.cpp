// Planning of matmuls: pure functions of the shape and the limits.
#include "device/plan.h"

#include <algorithm>

namespace mlx_ane {

namespace {

// fp16 elements in the unit of a row; every padded axis is a multiple of it.
constexpr int64_t unit = Limits::row_alignment / 2;

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Tiles of at most `most` elements, all padded to one size: one program.
std::vector<Tile> even_tiles(int64_t n, int64_t most) {
  auto parts = (n + most - 1) / most;
  auto step = round_up((n + parts - 1) / parts, unit);
  std::vector<Tile> tiles;
  for (int64_t begin = 0; begin < n; begin += step) {
    tiles.push_back({begin, std::min(step, n - begin), step});
  }
  return tiles;
}

}  // namespace

int64_t row_bucket(int64_t rows) {
  auto* bucket =
      std::lower_bound(std::begin(row_buckets), std::end(row_buckets), rows);
  return bucket == std::end(row_buckets) ? bucket[-1] : *bucket;
}

MatmulPlan plan_matmul(
    int64_t s, int64_t k, int64_t n, const Limits& limits, Layout layout) {
  MatmulPlan plan;
  plan.layout = layout;
  for (int64_t begin = 0; begin < s;) {
    auto bucket = row_bucket(s - begin);
    auto size = std::min(bucket, s - begin);
    plan.rows.push_back({begin, size, bucket});
    begin += size;
  }
  plan.depth = even_tiles(k, limits.max_contraction / unit * unit);
  plan.columns = even_tiles(n, limits.max_axis / unit * unit);
  return plan;
}

}  // namespace mlx_ane
