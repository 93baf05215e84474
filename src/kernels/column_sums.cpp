// Column sums in panels of columns whose accumulators stay in L1.
#include "kernels/column_sums.h"

#include <algorithm>
#include <array>

#include "host/half.h"

namespace mlx_ane::kernels {

namespace {

constexpr int64_t panel = 512;

void add_row(const MatrixView& x, int64_t r, float* row, double* sums) {
  auto line = x.block(r, 0, 1, x.cols);
  if (x.col_stride == 1) {
    host::to_float(line.data, x.type, row, x.cols);
  } else {
    for (int64_t c = 0; c < x.cols; ++c) {
      host::to_float(line.block(0, c, 1, 1).data, x.type, row + c, 1);
    }
  }
  for (int64_t c = 0; c < x.cols; ++c) {
    sums[c] += row[c];
  }
}

}  // namespace

void column_sums(const MatrixView& x, Float type, void* out) {
  std::array<double, panel> sums;
  std::array<float, panel> row;
  for (int64_t begin = 0; begin < x.cols; begin += panel) {
    auto width = std::min(panel, x.cols - begin);
    auto columns = x.block(0, begin, x.rows, width);
    std::fill_n(sums.begin(), width, 0.0);
    for (int64_t r = 0; r < x.rows; ++r) {
      add_row(columns, r, row.data(), sums.data());
    }
    std::copy_n(sums.begin(), width, row.begin());
    auto* dst =
        static_cast<char*>(out) + begin * static_cast<int64_t>(size_of(type));
    host::from_float(row.data(), type, dst, width);
  }
}

}  // namespace mlx_ane::kernels
