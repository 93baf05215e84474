// y = x Wᵀ + b with the forward on a device and the gradients on the BLAS.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "ops/checks.h"
#include "ops/primitive.h"
#include "trace/counters.h"

namespace mlx_ane {

struct LinearOptions {
  Place place;
  /// Path of the layer in its model: the name in counters and errors.
  std::string layer;
  /// The weight is not trained: keep it staged on the device between calls.
  bool frozen = false;
  /// Two-term split of both operands on the device.
  bool high_precision = false;
  mx::Dtype dtype = mx::float32;  // of the result
  bool operator==(const LinearOptions&) const = default;
};

///// Operation

/// x (..., K), weight (N, K), bias (N) -> (..., N) in the promoted type.
mx::array linear(
    const mx::array& x,
    const mx::array& weight,
    const std::optional<mx::array>& bias,
    const std::string& device,
    const std::string& layer,
    bool frozen,
    const std::string& precision,
    const mx::StreamOrDevice& stream);

///// Primitive

class ANELinear : public PrimitiveOf<LinearOptions> {
 public:
  ANELinear(mx::Stream stream, const LinearOptions& options)
      : PrimitiveOf(stream, options), layer_(trace::layer(options.layer)) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_NAME(ANELinear)
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  std::shared_ptr<trace::Layer> layer_;
};

}  // namespace mlx_ane
