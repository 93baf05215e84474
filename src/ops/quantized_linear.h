// y = x Wᵀ + b for a quantised W that is never held in full on the host.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "kernels/dequantize.h"
#include "ops/checks.h"
#include "ops/fused.h"
#include "trace/counters.h"

namespace mlx_ane {

struct QuantizedOptions {
  kernels::QuantizationMode mode;
  int bits;
  int group_size;
  bool has_biases;  // of the quantisation
  bool has_bias;    // of the layer
  bool frozen;      // keep it staged on the device between calls
  Place place;
  std::string layer;
  mx::Dtype dtype;  // of the result
  bool operator==(const QuantizedOptions&) const = default;
};

/// std::invalid_argument for a name that is none of MLX's modes.
kernels::QuantizationMode quantization_mode(const std::string& name);

/// The kernel's view of evaluated arrays, all contiguous; biases may be null.
kernels::QuantizedMatrix quantized_matrix(
    const mx::array& weight,
    const mx::array& scales,
    const mx::array* biases,
    kernels::QuantizationMode mode,
    int bits,
    int group_size);

///// Operation

/// x (..., K) times the transpose of the (N, K) matrix that weight, scales and
/// biases stand for, as mx.quantized_matmul, plus bias (N). Differentiable in
/// all but the weight, and but the scales of modes other than affine.
mx::array quantized_linear(
    const mx::array& x,
    const mx::array& weight,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    const std::optional<mx::array>& bias,
    int group_size,
    int bits,
    const std::string& mode,
    const std::string& device,
    const std::string& layer,
    bool frozen,
    const mx::StreamOrDevice& stream);

///// Primitives

/// (x, weight, scales, [biases], [bias]) -> y
class QuantizedLinear : public PrimitiveOf<QuantizedOptions, Fused> {
 public:
  QuantizedLinear(
      mx::Stream stream, const QuantizedOptions& options, Function composition)
      : PrimitiveOf(stream, options, std::move(composition)),
        layer_(trace::layer(options.layer)) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  std::vector<mx::array> vjp(
      const std::vector<mx::array>& primals,
      const std::vector<mx::array>& cotangents,
      const std::vector<int>& argnums,
      const std::vector<mx::array>& outputs) override;
  DEFINE_NAME(ANEQuantizedLinear)
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  /// std::invalid_argument for an argument that has no gradient.
  void check_trained(int argument) const;

  std::shared_ptr<trace::Layer> layer_;
};

/// (dy, weight, scales, [biases]) -> dx = dy W, through panels of W
class QuantizedLinearVJP : public PrimitiveOf<QuantizedOptions, Fused> {
 public:
  using PrimitiveOf::PrimitiveOf;

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  DEFINE_NAME(ANEQuantizedLinearVJP)
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;
};

}  // namespace mlx_ane
