// scaled_dot_product_attention: softmax(q kᵀ / sqrt(d) + mask) v.
#include <algorithm>
#include <cmath>

#include "device/emulated/broadcast.h"
#include "device/emulated/product.h"

namespace mlx_ane::emulated {

namespace {

/// Softmax of each row of scores (rows, cols), in place.
void softmax_rows(float* scores, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r, scores += cols) {
    auto largest = *std::max_element(scores, scores + cols);
    float sum = 0;
    for (int64_t c = 0; c < cols; ++c) {
      scores[c] = std::exp(scores[c] - largest);
      sum += scores[c];
    }
    for (int64_t c = 0; c < cols; ++c) {
      scores[c] /= sum;
    }
  }
}

// query (..., L, E), key (..., S, E), value (..., S, V), attn_mask (..., L, S):
// bool (attend where true) or added to the scores. fp16 between the steps.
Built scaled_dot_product_attention(const Call& call) {
  auto q = call.operand("query"), k = call.operand("key"),
       v = call.operand("value"), mask = call.optional("attn_mask"),
       z = call.results[0];
  auto &qs = q.shape(), &ks = k.shape(), &vs = v.shape();
  auto rank = qs.size();
  call.need(
      rank >= 3 && ks.size() == rank && vs.size() == rank &&
          mil::is_float(q.type.dtype) && k.type.dtype == q.type.dtype &&
          v.type.dtype == q.type.dtype,
      "query, key and value must be of one float type and rank");
  call.need(
      ks[rank - 1] == qs[rank - 1] && vs[rank - 2] == ks[rank - 2] &&
          ks[rank - 2] > 0 &&
          std::equal(qs.begin(), qs.end() - 2, ks.begin()) &&
          std::equal(qs.begin(), qs.end() - 2, vs.begin()),
      "query " + to_string(qs) + ", key " + to_string(ks) + " and value " +
          to_string(vs) + " do not fit");
  auto l = qs[rank - 2], e = qs[rank - 1], s = ks[rank - 2], d = vs[rank - 1];
  Shape scores_shape(qs.begin(), qs.end() - 1);
  scores_shape.push_back(s);
  auto mask_shape = mask ? mask.shape() : Shape{};
  call.need(
      broadcast(scores_shape, mask_shape) == scores_shape,
      "attn_mask does not broadcast to " + to_string(scores_shape));
  Loop<1> loop(scores_shape, {&mask_shape});
  bool additive = mask && mil::is_float(mask.type.dtype);
  bool halves = q.type.dtype == DType::fp16;
  auto size = elements(scores_shape), batches = size ? size / (l * s) : 0;
  auto shape = qs;
  shape[rank - 1] = d;
  auto scale = 1.0f / std::sqrt(static_cast<float>(e));
  Built built({{q.type.dtype, shape}});
  built.scratch_bytes = size * element_size;
  built.kernel = [=](const Frame& frame) {
    auto* scores = reinterpret_cast<float*>(frame.scratch);
    for (int64_t b = 0; b < batches; ++b) {
      multiply(
          {l, s, e, false, true},
          q.floats(frame) + b * l * e,
          k.floats(frame) + b * s * e,
          nullptr,
          scores + b * l * s,
          frame.numerics);
    }
    for (int64_t i = 0; i < size; ++i) {
      scores[i] *= scale;
    }
    if (mask) {
      loop.run([&](int64_t at, auto offset, int64_t n, auto step) {
        for (int64_t i = 0; i < n; ++i) {
          auto from = offset[0] + i * step[0];
          if (additive) {
            scores[at + i] += mask.floats(frame)[from];
          } else if (!mask.ints(frame)[from]) {
            scores[at + i] = -INFINITY;
          }
        }
      });
    }
    softmax_rows(scores, batches * l, s);
    if (halves) {
      if (frame.numerics != Numerics::single) {
        round_to_half(scores, size);
      }
    }
    for (int64_t b = 0; b < batches; ++b) {
      multiply(
          {l, d, s},
          scores + b * l * s,
          v.floats(frame) + b * s * d,
          nullptr,
          z.floats(frame) + b * l * d,
          frame.numerics);
    }
  };
  return built;
}

constexpr Op table[] = {
    {"scaled_dot_product_attention",
     scaled_dot_product_attention,
     "iOS18 transformers: scaled_dot_product_attention"},
};

}  // namespace

std::span<const Op> attention_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
