// Fused cross-entropy and SwiGLU with MLX's semantics.
#pragma once

#include <string>

#include "ops/checks.h"
#include "ops/fused.h"

namespace mlx_ane {

///// Operations

/// logits (..., V), integer targets (...) -> losses (...) in fp32:
/// logsumexp(x) - (1 - s) x[target] - s mean(x), s = label_smoothing.
mx::array cross_entropy(
    const mx::array& logits,
    const mx::array& targets,
    float label_smoothing,
    const mx::StreamOrDevice& stream);

/// silu(gate) * up, elementwise over equal shapes and dtypes.
mx::array swiglu(
    const mx::array& gate,
    const mx::array& up,
    const mx::StreamOrDevice& stream);

///// Primitives

/// (logits, targets int32) -> (loss, logsumexp), both (...) fp32
class CrossEntropy : public Fused {
 public:
  CrossEntropy(mx::Stream stream, float smoothing, Function composition)
      : Fused(stream, std::move(composition)), smoothing_(smoothing) {
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
    return "ANECrossEntropy";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  float smoothing_;
};

/// (logits, targets, logsumexp, d_loss) -> d_logits
class CrossEntropyVJP : public Fused {
 public:
  CrossEntropyVJP(mx::Stream stream, float smoothing, Function composition)
      : Fused(stream, std::move(composition)), smoothing_(smoothing) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "ANECrossEntropyVJP";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  float smoothing_;
};

/// (gate, up) -> out
class SwiGLU : public Fused {
 public:
  using Fused::Fused;

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  std::vector<mx::array> vjp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "ANESwiGLU";
  }
  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }
};

/// (gate, up, d_out) -> (d_gate, d_up)
class SwiGLUVJP : public Fused {
 public:
  using Fused::Fused;

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "ANESwiGLUVJP";
  }
  bool is_equivalent(const mx::Primitive&) const override {
    return true;
  }
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape(), inputs[0].shape()};
  }
};

}  // namespace mlx_ane
