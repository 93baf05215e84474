// Cross-entropy, row by row while in cache.
#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "host/half.h"
#include "host/loops.h"
#include "host/rows.h"
#include "host/scratch.h"

namespace mlx_ane::kernels {

namespace {

struct RowUse {};
struct OutUse {};

/// Row t of the logits as fp32, in place or in scratch.
const float* logits_row(const MatrixView& logits, int64_t t) {
  MatrixView row = logits.block(t, 0, 1, logits.cols);
  bool in_place = logits.type == Float::f32 && logits.col_stride == 1;
  return host::float_rows(
             row,
             in_place ? nullptr : host::scratch<RowUse, float>(logits.cols))
      .data;
}

/// The column that a target means, if it means one.
std::optional<int64_t> column(int64_t target, int64_t vocabulary) {
  int64_t j = target < 0 ? target + vocabulary : target;
  return j >= 0 && j < vocabulary ? std::optional(j) : std::nullopt;
}

/// Mean of x - maximum, differences first: the mean of large logits alone
/// would round them away.
float mean_below(const float* x, float maximum, int64_t n) {
  constexpr int64_t tile = 1024;
  alignas(64) float below[tile];
  double sum = 0.0;
  for (int64_t i = 0; i < n; i += tile) {
    int64_t count = std::min(tile, n - i);
    for (int64_t j = 0; j < count; ++j) {
      below[j] = x[i + j] - maximum;
    }
    sum += host::loops().sum(below, count);
  }
  return static_cast<float>(sum / static_cast<double>(n));
}

}  // namespace

void cross_entropy_forward(
    const MatrixView& logits,
    const int32_t* targets,
    float label_smoothing,
    float* loss,
    float* maximum,
    float* sum) {
  for (int64_t t = 0; t < logits.rows; ++t) {
    auto target = column(targets[t], logits.cols);
    const float* x = logits_row(logits, t);
    float top = host::loops().maximum(x, logits.cols);
    maximum[t] =
        std::isfinite(top) ? top : std::numeric_limits<float>::quiet_NaN();
    sum[t] = host::loops().exp_sum(x, 1.0f, maximum[t], nullptr, logits.cols);
    if (!target) {
      loss[t] = 0.0f;
      continue;
    }
    loss[t] =
        std::log(sum[t]) - (1.0f - label_smoothing) * (x[*target] - maximum[t]);
    if (label_smoothing != 0.0f) {
      loss[t] -= label_smoothing * mean_below(x, maximum[t], logits.cols);
    }
  }
}

void cross_entropy_backward(
    const MatrixView& logits,
    const int32_t* targets,
    float label_smoothing,
    const float* maximum,
    const float* sum,
    const float* d_loss,
    const MatrixOut& d_logits) {
  float smooth = label_smoothing / static_cast<float>(logits.cols);
  auto size = static_cast<int64_t>(size_of(d_logits.type));
  bool direct = d_logits.type == Float::f32;
  float* buffer = direct ? nullptr : host::scratch<OutUse, float>(logits.cols);
  for (int64_t t = 0; t < logits.rows; ++t) {
    auto row =
        static_cast<char*>(d_logits.data) + t * d_logits.row_stride * size;
    float* out = direct ? reinterpret_cast<float*>(row) : buffer;
    if (auto target = column(targets[t], logits.cols)) {
      const float* x = logits_row(logits, t);
      float d = d_loss[t];
      host::loops().exp_scale(
          x, maximum[t], d / sum[t], -smooth * d, out, logits.cols);
      out[*target] -= (1.0f - label_smoothing) * d;
    } else {
      std::fill_n(out, logits.cols, 0.0f);
    }
    if (!direct) {
      host::from_float(out, d_logits.type, row, logits.cols);
    }
  }
}

}  // namespace mlx_ane::kernels
