// Fused scaled dot-product attention, forward and backward, over the BLAS.
#pragma once

#include <array>

#include "host/matrix.h"

namespace mlx_ane::kernels {

/// (batch, heads, rows, cols) tensor of any strides, in elements.
struct Heads {
  void* data = nullptr;
  Float type = Float::f32;
  std::array<int64_t, 4> shape{};
  std::array<int64_t, 4> strides{};

  /// The (rows, cols) matrix of one head.
  MatrixView head(int64_t batch, int64_t head) const {
    auto offset = (batch * strides[0] + head * strides[1]) *
                  static_cast<int64_t>(size_of(type));
    return {
        static_cast<const char*>(data) + offset,
        type,
        shape[2],
        shape[3],
        strides[2],
        strides[3]};
  }
};

/// What is added to the scaled scores (batch, heads, rows, keys); broadcast
/// axes have stride 0.
struct Mask {
  enum class Kind : uint8_t { none, causal, boolean, additive };
  Kind kind = Kind::none;
  /// boolean: uint8_t, 0 hides a key. additive: values of `type`, and the sums
  /// are rounded to the type of q, as MLX's are.
  const void* data = nullptr;
  Float type = Float::f32;
  std::array<int64_t, 4> strides{};
};

/// q: (B, H, S, D), k: (B, G, T, D), v: (B, G, T, E), T at least 1; H is a
/// multiple of G and head h reads k and v of head h / (H / G). Causal: row i
/// sees the keys up to i + T - S. A hidden key scores the lowest value of q's
/// type, so a row that sees no key averages all of v, as in MLX.
struct Attention {
  Heads q;
  Heads k;
  Heads v;
  float scale = 1.0f;
  Mask mask;
  /// One extra score per head (H) that takes probability and adds no value, or
  /// nullptr.
  const float* sinks = nullptr;
};

/// One row's softmax: p = exp(score - maximum) * reciprocal. Kept apart, since
/// a log-sum-exp of scores near -1e9 has no bits left for the logarithm.
struct RowSoftmax {
  float maximum;
  float reciprocal;
};

/// out: (B, H, S, E), in its own type and strides, last stride 1.
/// softmax: (B, H, S), contiguous, for the backward pass; may be nullptr.
void attention_forward(
    const Attention& attention, const Heads& out, RowSoftmax* softmax);

/// Gradients of attention_forward; dq, dk, dv have last stride 1 and are
/// overwritten, as is d_sinks (H) where it is not nullptr.
void attention_backward(
    const Attention& attention,
    const Heads& out,
    const RowSoftmax* softmax,
    const Heads& d_out,
    const Heads& dq,
    const Heads& dk,
    const Heads& dv,
    float* d_sinks);

}  // namespace mlx_ane::kernels
