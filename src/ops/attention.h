// Scaled dot-product attention over the fused kernels, with MLX's semantics.
#pragma once

#include <optional>
#include <string>

#include "kernels/attention.h"
#include "ops/checks.h"
#include "ops/fused.h"
#include "trace/counters.h"

namespace mlx_ane {

struct AttentionOptions {
  float scale;
  kernels::Mask::Kind mask;
  bool sinks;
  Place place;
  bool operator==(const AttentionOptions&) const = default;
};

///// Operation

/// q (B, H, S, D), k (B, G, T, D), v (B, G, T, E) -> (B, H, S, E), as
/// mx.fast.scaled_dot_product_attention: `mask` boolean or additive, broadcast
/// to (B, H, S, T), or `causal`; `sinks` (H). Types promote as in MLX; float64
/// is computed by MLX.
mx::array attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    float scale,
    const std::optional<mx::array>& mask,
    const std::optional<mx::array>& sinks,
    bool causal,
    const std::string& device,
    const mx::StreamOrDevice& stream);

///// Primitives

/// (q, k, v, [mask], [sinks]) -> (out, softmax (B, H, S, 2), of which only the
/// kernel of AttentionVJP reads: kernels::RowSoftmax)
class Attention : public Fused {
 public:
  Attention(
      mx::Stream stream, const AttentionOptions& options, Function composition)
      : Fused(stream, std::move(composition)),
        options_(options),
        layer_(trace::layer("scaled_dot_product_attention")) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  std::vector<mx::array> vjp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "ANEAttention";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  AttentionOptions options_;
  std::shared_ptr<trace::Layer> layer_;
};

/// (q, k, v, [mask], [sinks], out, softmax, d_out) -> (dq, dk, dv, [d_sinks])
class AttentionVJP : public Fused {
 public:
  AttentionVJP(
      mx::Stream stream, const AttentionOptions& options, Function composition)
      : Fused(stream, std::move(composition)), options_(options) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "ANEAttentionVJP";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  AttentionOptions options_;
};

}  // namespace mlx_ane
