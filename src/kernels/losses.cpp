// Fused cross-entropy and SwiGLU, row by row and tile by tile while in cache.
#include "kernels/losses.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "host/half.h"
#include "host/loops.h"
#include "host/rows.h"
#include "host/scratch.h"

namespace mlx_ane::kernels {

namespace {

struct RowUse {};
struct OutUse {};

/// Elements whose fp32 forms stay in L1 together.
constexpr int64_t tile = 1024;

/// Row t of the logits as fp32, in place or in scratch.
const float* logits_row(const MatrixView& logits, int64_t t) {
  MatrixView row = logits.block(t, 0, 1, logits.cols);
  bool in_place = logits.type == Float::f32 && logits.col_stride == 1;
  return host::float_rows(
             row,
             in_place ? nullptr : host::scratch<RowUse, float>(logits.cols))
      .data;
}

bool valid(int32_t target, const MatrixView& logits) {
  return target >= 0 && target < logits.cols;
}

/// fp32 values of elements i .. i + n, in place or in `buffer`.
const float* read(
    const void* data, Float type, int64_t i, int64_t n, float* buffer) {
  if (type == Float::f32) {
    return static_cast<const float*>(data) + i;
  }
  host::to_float(static_cast<const uint16_t*>(data) + i, type, buffer, n);
  return buffer;
}

/// Where fp32 results of elements from i on go before `write`.
float* target_of(void* data, Float type, int64_t i, float* buffer) {
  return type == Float::f32 ? static_cast<float*>(data) + i : buffer;
}

void write(const float* values, void* data, Float type, int64_t i, int64_t n) {
  if (type != Float::f32) {
    host::from_float(values, type, static_cast<uint16_t*>(data) + i, n);
  }
}

}  // namespace

void cross_entropy_forward(
    const MatrixView& logits,
    const int32_t* targets,
    float label_smoothing,
    float* loss,
    float* logsumexp) {
  for (int64_t t = 0; t < logits.rows; ++t) {
    const float* x = logits_row(logits, t);
    float maximum = host::loops().maximum(x, logits.cols);
    // Rows of -infinity alone have no finite shift.
    float shift = std::isfinite(maximum) ? maximum : 0.0f;
    float sum = host::loops().exp_sum(x, 1.0f, shift, nullptr, logits.cols);
    logsumexp[t] = shift + std::log(sum);
    if (!valid(targets[t], logits)) {
      loss[t] = std::numeric_limits<float>::quiet_NaN();
      continue;
    }
    loss[t] = logsumexp[t] - (1.0f - label_smoothing) * x[targets[t]];
    if (label_smoothing != 0.0f) {
      loss[t] -= label_smoothing * host::loops().sum(x, logits.cols) /
                 static_cast<float>(logits.cols);
    }
  }
}

void cross_entropy_backward(
    const MatrixView& logits,
    const int32_t* targets,
    float label_smoothing,
    const float* logsumexp,
    const float* d_loss,
    const MatrixOut& d_logits) {
  float smooth = label_smoothing / static_cast<float>(logits.cols);
  auto size = static_cast<int64_t>(size_of(d_logits.type));
  bool direct = d_logits.type == Float::f32;
  float* buffer = direct ? nullptr : host::scratch<OutUse, float>(logits.cols);
  for (int64_t t = 0; t < logits.rows; ++t) {
    const float* x = logits_row(logits, t);
    auto row =
        static_cast<char*>(d_logits.data) + t * d_logits.row_stride * size;
    float* out = direct ? reinterpret_cast<float*>(row) : buffer;
    host::loops().exp_scale(
        x, logsumexp[t], d_loss[t], -smooth * d_loss[t], out, logits.cols);
    if (valid(targets[t], logits)) {
      out[targets[t]] -= (1.0f - label_smoothing) * d_loss[t];
    } else {
      std::fill_n(out, logits.cols, std::numeric_limits<float>::quiet_NaN());
    }
    write(out, row, d_logits.type, 0, logits.cols);
  }
}

void swiglu_forward(
    const void* gate, const void* up, Float type, void* out, int64_t n) {
  alignas(64) float gates[tile], ups[tile];
  for (int64_t i = 0; i < n; i += tile) {
    int64_t count = std::min(tile, n - i);
    float* result = target_of(out, type, i, gates);
    host::loops().swiglu(
        read(gate, type, i, count, gates),
        read(up, type, i, count, ups),
        result,
        count);
    write(result, out, type, i, count);
  }
}

void swiglu_backward(
    const void* gate,
    const void* up,
    const void* d_out,
    Float type,
    void* d_gate,
    void* d_up,
    int64_t n) {
  alignas(64) float gates[tile], ups[tile], grads[tile];
  for (int64_t i = 0; i < n; i += tile) {
    int64_t count = std::min(tile, n - i);
    float* gate_result = target_of(d_gate, type, i, gates);
    float* up_result = target_of(d_up, type, i, ups);
    host::loops().swiglu_backward(
        read(gate, type, i, count, gates),
        read(up, type, i, count, ups),
        read(d_out, type, i, count, grads),
        gate_result,
        up_result,
        count);
    write(gate_result, d_gate, type, i, count);
    write(up_result, d_up, type, i, count);
  }
}

}  // namespace mlx_ane::kernels
