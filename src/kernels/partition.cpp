// Chooses the partition that packs and adds the least.
#include "kernels/partition.h"

#include <algorithm>

namespace mlx_ane::kernels {

namespace {

/// A call below this many multiplications is over before a worker wakes up.
constexpr double shared_size = 4e6;
/// From here on, more parts even out a core that is also needed elsewhere; a
/// shorter call ends before its worker gets such a core, and only pays for
/// them.
constexpr double long_size = 1e9;
constexpr int64_t min_side = 96;
/// Shorter parts of k do not pay for adding their sums.
constexpr int64_t min_depth = 1024;
/// Elements of partial sums: 16 MB.
constexpr int64_t max_partial = 4 << 20;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Length of each of `count` parts of a side, in whole register tiles.
int64_t part_length(int64_t side, int64_t count) {
  constexpr int64_t unit = 16;
  return ceil_div(ceil_div(side, count), unit) * unit;
}

Partition divide(
    int64_t m,
    int64_t n,
    int64_t k,
    int64_t rows,
    int64_t cols,
    int64_t depth) {
  Partition c;
  c.height = part_length(m, rows);
  c.width = part_length(n, cols);
  c.length = part_length(k, depth);
  c.rows = ceil_div(m, c.height);
  c.cols = ceil_div(n, c.width);
  c.depth = ceil_div(k, c.length);
  return c;
}

}  // namespace

Partition partition(
    bool trans_a, int64_t m, int64_t n, int64_t k, int threads) {
  Partition best = divide(m, n, k, 1, 1, 1);
  double size = static_cast<double>(m) * n * k;
  if (threads <= 1 || size <= shared_size) {
    return best;
  }
  int64_t wanted = threads * (size < long_size ? 2 : 4);
  int64_t max_depth = std::clamp<int64_t>(
      std::min(k / min_depth, max_partial / (m * n)), 1, wanted);
  double best_cost = 0;
  for (int64_t rows = 1; rows <= wanted; ++rows) {
    for (int64_t cols = 1; rows * cols <= wanted; ++cols) {
      bool thin = (rows > 1 && m / rows < min_side) ||
                  (cols > 1 && n / cols < min_side);
      if (thin) {
        continue;
      }
      int64_t depth = std::min(ceil_div(wanted, rows * cols), max_depth);
      Partition c = divide(m, n, k, rows, cols, depth);
      // Each tile packs its rows and columns; partial sums are written, read
      // and added. Transposed rows were measured to cost twice as much.
      double cost = static_cast<double>(c.rows) * n * k +
                    (trans_a ? 2.0 : 1.0) * c.cols * m * k +
                    (c.depth > 1 ? 4.0 * c.depth * m * n : 0.0);
      int64_t parts = std::min(c.parts(), wanted);
      int64_t best_parts = std::min(best.parts(), wanted);
      if (parts > best_parts || (parts == best_parts && cost < best_cost)) {
        best = c;
        best_cost = cost;
      }
    }
  }
  return best;
}

}  // namespace mlx_ane::kernels
