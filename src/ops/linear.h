// y = x Wᵀ + b with the forward on a device and the gradients on the BLAS.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "mlx/mlx.h"
#include "mlx/primitives.h"

#include "device/device.h"
#include "ops/checks.h"
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

class ANELinear : public mx::Primitive {
 public:
  ANELinear(mx::Stream stream, LinearOptions options, mx::Dtype dtype)
      : mx::Primitive(stream),
        options_(std::move(options)),
        dtype_(dtype),
        layer_(trace::layer(options_.layer)) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  void eval_gpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  std::vector<mx::array> jvp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& tangents,
      const std::vector<int>& argnums) override;
  std::vector<mx::array> vjp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs,
      const std::vector<int>& axes) override;
  const char* name() const override {
    return "ANELinear";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  mx::array apply(
      const mx::array& x,
      const mx::array& w,
      const std::optional<mx::array>& b);

  LinearOptions options_;
  mx::Dtype dtype_;
  std::shared_ptr<trace::Layer> layer_;
};

}  // namespace mlx_ane
