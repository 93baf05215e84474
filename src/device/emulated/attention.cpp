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

/// Of query (..., L, E), key (..., S, E) and value (..., S, V).
struct Sizes {
  int64_t batches, l, e, s, v;
};

Sizes checked_sizes(const Call& call) {
  auto q = call.operand("query"), k = call.operand("key"),
       v = call.operand("value");
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
  Shape batch(qs.begin(), qs.end() - 2);
  return {
      elements(batch), qs[rank - 2], qs[rank - 1], ks[rank - 2], vs[rank - 1]};
}

// attn_mask (..., L, S): bool (attend where true) or added to the scores. fp16
// between the steps.
LoweredOp scaled_dot_product_attention(const Call& call) {
  auto sizes = checked_sizes(call);
  auto q = call.operand("query"), k = call.operand("key"),
       v = call.operand("value"), mask = call.optional("attn_mask"),
       z = call.results[0];
  Shape scores_shape(q.shape().begin(), q.shape().end() - 1);
  scores_shape.push_back(sizes.s);
  auto mask_shape = mask ? mask.shape() : Shape{};
  call.need(
      broadcast(scores_shape, mask_shape) == scores_shape,
      "attn_mask does not broadcast to " + to_string(scores_shape));
  auto apply_mask = [mask,
                     loop = Loop<1>(scores_shape, {&mask_shape}),
                     additive = mask && mil::is_float(mask.type.dtype)](
                        float* scores, const Frame& frame) {
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
  };
  auto shape = q.shape();
  shape.back() = sizes.v;
  LoweredOp lowered({{q.type.dtype, shape}});
  lowered.scratch_bytes = elements(scores_shape) * element_size;
  lowered.kernel = [=](const Frame& frame) {
    auto [batches, l, e, s, d] = sizes;
    auto* scores = reinterpret_cast<float*>(frame.scratch);
    auto size = batches * l * s;
    for (int64_t b = 0; b < batches; ++b) {
      multiply(
          {l, s, e, false, true},
          q.floats(frame) + b * l * e,
          k.floats(frame) + b * s * e,
          nullptr,
          scores + b * l * s,
          frame.numerics);
    }
    auto scale = 1.0f / std::sqrt(static_cast<float>(e));
    for (int64_t i = 0; i < size; ++i) {
      scores[i] *= scale;
    }
    if (mask) {
      apply_mask(scores, frame);
    }
    softmax_rows(scores, batches * l, s);
    if (q.type.dtype == DType::fp16 && frame.numerics != Numerics::single) {
      round_to_half(scores, size);
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
  return lowered;
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
