// GEMM shared among threads, on any float type and strides.
#include "kernels/gemm.h"

#include <algorithm>
#include <limits>

#include "host/half.h"
#include "host/pool.h"
#include "host/rows.h"
#include "host/scratch.h"
#include "kernels/partition.h"

namespace mlx_ane::kernels {

namespace {

struct LeftUse {};
struct RightUse {};
struct OutUse {};
struct PartialUse {};

/// Sides of the blocks of c whose operands are converted, and how much of k at
/// a time: what the BLAS packs next is still in L2, and no more passes over c
/// are made than the BLAS makes anyway.
constexpr int64_t panel = 1024;
constexpr int64_t panel_depth = 384;

/// An fp32 matrix as BLAS takes it.
struct Operand {
  const float* data;
  int64_t ld;
  bool transposed;
};

bool leading_dimension(int64_t stride, int64_t length) {
  return stride >= length && stride <= std::numeric_limits<int32_t>::max();
}

bool row_major(const MatrixView& x) {
  return x.type == Float::f32 && x.col_stride == 1 &&
         (x.rows == 1 || leading_dimension(x.row_stride, x.cols));
}

bool readable(const MatrixView& x) {
  return row_major(x) || row_major(x.transposed());
}

/// The view itself where BLAS can read it, else a copy in scratch.
template <class Use>
Operand operand(const MatrixView& x) {
  bool transposed = !row_major(x) && row_major(x.transposed());
  // A copy is made along the shorter stride, so that both sides are in order.
  if (!readable(x)) {
    transposed = x.row_stride == 1 && x.col_stride != 1;
  }
  MatrixView rows = transposed ? x.transposed() : x;
  if (row_major(rows)) {
    int64_t ld = rows.rows == 1 ? rows.cols : rows.row_stride;
    return {static_cast<const float*>(rows.data), ld, transposed};
  }
  auto copy = host::scratch<Use, float>(rows.rows * rows.cols);
  host::copy_rows(rows, copy, rows.cols);
  return {copy, rows.cols, transposed};
}

void fill_bias(const MatrixView& bias, int64_t rows, float* c, int64_t ldc) {
  MatrixView row{bias.data, bias.type, 1, bias.cols, 0, bias.col_stride};
  host::copy_rows(row, c, ldc);
  for (int64_t r = 1; r < rows; ++r) {
    std::copy_n(c, bias.cols, c + r * ldc);
  }
}

/// One block of c, whose operands are converted and multiplied by panels of k.
void gemm_block(
    const MatrixView& a,
    const MatrixView& b,
    const MatrixView* bias,
    const MatrixOut& c) {
  bool direct = c.type == Float::f32;
  auto out = direct ? static_cast<float*>(c.data)
                    : host::scratch<OutUse, float>(c.rows * c.cols);
  int64_t ldc = direct ? c.row_stride : c.cols;
  if (bias != nullptr) {
    // Costs nothing: without it, the BLAS would write zeros there.
    fill_bias(*bias, c.rows, out, ldc);
  }
  int64_t step =
      readable(a) && readable(b) ? std::max<int64_t>(a.cols, 1) : panel_depth;
  // k = 0 still needs one call, for zeros.
  for (int64_t p = 0; p < std::max<int64_t>(a.cols, 1); p += step) {
    int64_t k = std::min(step, a.cols - p);
    Operand left = operand<LeftUse>(a.block(0, p, a.rows, k));
    Operand right = operand<RightUse>(b.block(p, 0, k, b.cols));
    sgemm(
        {.trans_a = left.transposed,
         .trans_b = right.transposed,
         .m = c.rows,
         .n = c.cols,
         .k = k,
         .a = left.data,
         .lda = left.ld,
         .b = right.data,
         .ldb = right.ld,
         .beta = bias != nullptr || p > 0 ? 1.0f : 0.0f,
         .c = out,
         .ldc = ldc});
  }
  auto row_bytes = c.row_stride * static_cast<int64_t>(size_of(c.type));
  for (int64_t r = 0; !direct && r < c.rows; ++r) {
    auto row = static_cast<char*>(c.data) + r * row_bytes;
    host::from_float(out + r * ldc, c.type, row, c.cols);
  }
}

MatrixOut block_of(
    const MatrixOut& c, int64_t r, int64_t col, int64_t rows, int64_t cols) {
  auto offset =
      (r * c.row_stride + col) * static_cast<int64_t>(size_of(c.type));
  return {
      static_cast<char*>(c.data) + offset, c.type, rows, cols, c.row_stride};
}

/// Blocks for each thread to take, where there is work for several.
int64_t side_of_block(int64_t side, int64_t other, int64_t k) {
  bool shared =
      blas::threads() > 1 && static_cast<double>(side) * other * k > 4e6;
  int64_t share = shared ? side / (2 * blas::threads()) / 16 * 16 : panel;
  return std::clamp<int64_t>(share, 192, panel);
}

/// c (rows, cols) += the partial sums, in their order.
void add_partial(
    const float* partial, int64_t count, const blas::Sgemm& p, int threads) {
  host::parallel_for(p.m, threads, [&](int64_t r) {
    for (int64_t i = 0; i < count; ++i) {
      const float* from = partial + (i * p.m + r) * p.n;
      float* to = p.c + r * p.ldc;
      for (int64_t col = 0; col < p.n; ++col) {
        to[col] += from[col];
      }
    }
  });
}

}  // namespace

void sgemm(const blas::Sgemm& p) {
  bool vector = p.m <= 1 || p.n <= 1;
  if (vector || p.k == 0 || blas::spreads_calls() || host::inside_task()) {
    blas::sgemm(p);
    return;
  }
  int threads = blas::threads();
  Partition parts = partition(p.trans_a, p.m, p.n, p.k, threads);
  // Of all parts of k but the first: depth - 1 matrices (m, n).
  auto partial =
      host::scratch<PartialUse, float>((parts.depth - 1) * p.m * p.n);
  host::parallel_for(parts.parts(), threads, [&](int64_t part) {
    int64_t tile = part / parts.depth, d = part % parts.depth;
    int64_t i = tile / parts.cols * parts.height;
    int64_t j = tile % parts.cols * parts.width;
    int64_t l = d * parts.length;
    blas::Sgemm piece = p;
    piece.m = std::min(parts.height, p.m - i);
    piece.n = std::min(parts.width, p.n - j);
    piece.k = std::min(parts.length, p.k - l);
    piece.a += p.trans_a ? l * p.lda + i : i * p.lda + l;
    piece.b += p.trans_b ? j * p.ldb + l : l * p.ldb + j;
    if (d > 0) {
      piece.beta = 0.0f;
      piece.c = partial + (d - 1) * p.m * p.n;
      piece.ldc = p.n;
    }
    piece.c += i * piece.ldc + j;
    blas::sgemm(piece);
  });
  if (parts.depth > 1) {
    add_partial(partial, parts.depth - 1, p, threads);
  }
}

void gemm(
    const MatrixView& a,
    const MatrixView& b,
    const MatrixView* bias,
    const MatrixOut& c) {
  if (c.rows == 0 || c.cols == 0) {
    return;
  }
  if (readable(a) && readable(b) && c.type == Float::f32) {
    gemm_block(a, b, bias, c);
    return;
  }
  // Blocks share the conversion among threads and bound the scratch.
  bool tall = c.rows >= c.cols;
  int64_t height = tall ? side_of_block(c.rows, c.cols, a.cols) : panel;
  int64_t width = tall ? panel : side_of_block(c.cols, c.rows, a.cols);
  int64_t across = (c.cols + width - 1) / width;
  int64_t down = (c.rows + height - 1) / height;
  host::parallel_for(across * down, blas::threads(), [&](int64_t i) {
    int64_t r = i / across * height, col = i % across * width;
    int64_t rows = std::min(height, c.rows - r);
    int64_t cols = std::min(width, c.cols - col);
    MatrixView bias_block;
    if (bias != nullptr) {
      bias_block = bias->block(0, col, 1, cols);
    }
    gemm_block(
        a.block(r, 0, rows, a.cols),
        b.block(0, col, b.rows, cols),
        bias != nullptr ? &bias_block : nullptr,
        block_of(c, r, col, rows, cols));
  });
}

}  // namespace mlx_ane::kernels
