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
  /// boolean: uint8_t, 0 hides a key. additive: values of `type`.
  const void* data = nullptr;
  Float type = Float::f32;
  std::array<int64_t, 4> strides{};
};

/// q: (B, H, S, D), k: (B, G, T, D), v: (B, G, T, E); H is a multiple of G and
/// head h reads k and v of head h / (H / G). Causal: row i sees the keys up to
/// i + T - S. A row that sees no key averages all of v, as in MLX.
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

/// out: (B, H, S, E), in its own type and strides, last stride 1.
/// logsumexp: (B, H, S), contiguous, for the backward pass; may be nullptr.
void attention_forward(
    const Attention& attention, const Heads& out, float* logsumexp);

/// Gradients of attention_forward; dq, dk, dv have last stride 1 and are
/// overwritten, d_sinks (H) too. A gradient whose data is nullptr is skipped.
void attention_backward(
    const Attention& attention,
    const Heads& out,
    const float* logsumexp,
    const Heads& d_out,
    const Heads& dq,
    const Heads& dk,
    const Heads& dv,
    float* d_sinks);

}  // namespace mlx_ane::kernels
