// Cross-entropy of class indices with MLX's semantics.
#pragma once

#include "ops/checks.h"
#include "ops/fused.h"

namespace mlx_ane {

///// Operation

/// logits (..., V), integer targets (...) -> losses (...) in fp32:
/// logsumexp(x) - (1 - s) x[target] - s mean(x), s = label_smoothing. See
/// kernels/cross_entropy.h for targets outside the vocabulary.
mx::array cross_entropy(
    const mx::array& logits,
    const mx::array& targets,
    float label_smoothing,
    const mx::StreamOrDevice& stream);

///// Primitives

/// (logits, targets int32) -> (loss, maximum, sum of exp(x - maximum)), each
/// (...) in fp32
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

/// (logits, targets, maximum, sum, d_loss) -> d_logits
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

}  // namespace mlx_ane
