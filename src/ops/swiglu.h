// SwiGLU: silu(gate) * up in one pass.
#pragma once

#include "ops/checks.h"
#include "ops/fused.h"

namespace mlx_ane {

///// Operation

/// silu(gate) * up, elementwise over equal shapes and dtypes.
mx::array swiglu(
    const mx::array& gate,
    const mx::array& up,
    const mx::StreamOrDevice& stream);

///// Primitives

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
