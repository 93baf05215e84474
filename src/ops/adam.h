// Adam and AdamW over lists of parameters: one gate, then fused in-place
// updates.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "mlx/mlx.h"
#include "mlx/primitives.h"

#include "kernels/adam.h"
#include "ops/checks.h"

namespace mlx_ane {

using kernels::AdamOptions;

struct AdamResult {
  std::vector<mx::array> parameters;
  std::vector<mx::array> m;
  std::vector<mx::array> v;
};

///// Operation

/// One step over all tensors. `scalars` is float32 [learning_rate, c1, c2,
/// step] (see kernels::AdamStep). The i-th gradient has the shape of the i-th
/// parameter, and so have its moments. If a device task that a gradient depends
/// on failed, everything passes through unchanged.
AdamResult adam(
    const std::vector<mx::array>& parameters,
    const std::vector<mx::array>& gradients,
    const std::vector<mx::array>& m,
    const std::vector<mx::array>& v,
    const mx::array& scalars,
    const AdamOptions& options,
    const mx::StreamOrDevice& stream);

///// Primitives

/// (scalars, gradients...) -> scalars with the clip factor and whether to skip:
/// every update depends on it, hence on every gradient of the step.
class AdamGate : public mx::Primitive {
 public:
  AdamGate(mx::Stream stream, std::optional<double> max_norm)
      : mx::Primitive(stream), max_norm_(max_norm) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  void eval_gpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "AdamGate";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  std::optional<double> max_norm_;
};

/// (gate, p, g, m, v, p, g, m, v, ...) -> (p, m, v, p, m, v, ...), in place
/// where nobody else holds a buffer.
class AdamUpdate : public mx::Primitive {
 public:
  AdamUpdate(mx::Stream stream, const AdamOptions& options, int first)
      : mx::Primitive(stream), options_(options), first_(first) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  void eval_gpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  const char* name() const override {
    return "AdamUpdate";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  void encode(
      const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs);

  AdamOptions options_;
  // Index of the first tensor in the step, for the seed of its rounding.
  int first_;
};

}  // namespace mlx_ane
