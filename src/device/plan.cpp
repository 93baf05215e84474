// Planning of matmuls: pure functions of the shape and the limits.
#include "device/plan.h"

#include <algorithm>
#include <stdexcept>

namespace mlx_ane {

namespace {

// fp16 elements in the unit of a row; every padded axis is a multiple of it.
constexpr int64_t unit = Limits::row_alignment / 2;

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Tiles of at most `max_size` elements, all padded to one size: one program.
std::vector<Tile> even_tiles(int64_t n, int64_t max_size) {
  auto parts = (n + max_size - 1) / max_size;
  auto step = round_up((n + parts - 1) / parts, unit);
  std::vector<Tile> tiles;
  for (int64_t begin = 0; begin < n; begin += step) {
    tiles.push_back({begin, std::min(step, n - begin), step});
  }
  return tiles;
}

}  // namespace

const char* to_string(Layout layout) {
  switch (layout) {
    case Layout::natural:
      return "natural";
    case Layout::channels_first:
      return "channels_first";
    case Layout::rank3:
      return "rank3";
    case Layout::weight_first:
      return "weight_first";
    case Layout::transposed:
      return "transposed";
    case Layout::single:
      return "single";
  }
  return "natural";
}

Layout layout_named(const std::string& name) {
  std::string names;
  for (auto layout : layouts) {
    if (name == to_string(layout)) {
      return layout;
    }
    names += (names.empty() ? "" : ", ") + std::string(to_string(layout));
  }
  throw std::invalid_argument(
      "[mlx_ane] got layout \"" + name + "\", need one of " + names + ".");
}

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
  // One axis holds the rows of both.
  auto shared = layout == Layout::single ? plan.max_bucket() : 0;
  plan.columns = even_tiles(n, (limits.max_axis - shared) / unit * unit);
  return plan;
}

}  // namespace mlx_ane
