// Adam and AdamW over lists of parameters: one gate, then fused in-place
// updates.
#pragma once

#include <vector>

#include "kernels/adam.h"
#include "ops/checks.h"
#include "ops/primitive.h"

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

/// (scalars, gradients...) -> scalars with the clip factor and whether to skip.
/// All updates take it as an input, so none runs before every gradient is done.
class AdamGate : public PrimitiveOf<AdamOptions> {
 public:
  using PrimitiveOf::PrimitiveOf;

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  DEFINE_NAME(AdamGate)
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;
};

struct AdamUpdateOptions {
  AdamOptions adam;
  /// Index of the first tensor in the step, for the seed of its rounding.
  int first;
  bool operator==(const AdamUpdateOptions&) const = default;
};

/// (gate, p, g, m, v, p, g, m, v, ...) -> (p, m, v, p, m, v, ...), in place
/// where nobody else holds a buffer.
class AdamUpdate : public PrimitiveOf<AdamUpdateOptions> {
 public:
  using PrimitiveOf::PrimitiveOf;

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  DEFINE_NAME(AdamUpdate)
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  void encode(
      const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs);
};

}  // namespace mlx_ane
