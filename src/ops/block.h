// A whole function as one node: an engine program forward, another backward.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "device/block.h"
#include "kernels/dequantize.h"
#include "ops/checks.h"
#include "ops/primitive.h"

namespace mlx_ane {

/// Derivatives of a block, which graph transformations ask for while they
/// trace. Destroyed on any thread.
class BlockTransforms {
 public:
  using Arrays = std::vector<mx::array>;
  virtual ~BlockTransforms() = default;
  virtual Arrays vjp(
      const Arrays& primals,
      const Arrays& cotangents,
      const std::vector<int>& argnums,
      mx::Stream stream) = 0;
  virtual Arrays jvp(
      const Arrays& primals,
      const Arrays& tangents,
      const std::vector<int>& argnums,
      mx::Stream stream) = 0;
  /// Outputs with the mapped axis first.
  virtual Arrays vmap(
      const Arrays& inputs,
      const std::vector<int>& axes,
      mx::Stream stream) = 0;
  /// Whether this stands for the same function.
  virtual bool is_equivalent(const BlockTransforms& other) const = 0;
};

/// An output: what the program returns, and an input that is added in fp32.
struct BlockOutput {
  mx::Shape shape;
  mx::Dtype dtype = mx::float32;
  int residual = -1;
  bool operator==(const BlockOutput& other) const {
    return shape == other.shape && dtype == other.dtype &&
           residual == other.residual;
  }
};

/// An input in whose place a quantised weight is given, uint32 as mx.quantize
/// returns it. Scales and, in mode affine, biases come after all inputs of the
/// program, in the order of these.
struct QuantizedInput {
  int input;
  int group_size;
  int bits;
  kernels::QuantizationMode mode;
  bool operator==(const QuantizedInput&) const = default;
};

struct BlockOptions {
  std::shared_ptr<const BlockProgram> program;
  std::vector<BlockOutput> outputs;
  /// Inputs whose ports stay on the device between calls.
  std::vector<bool> frozen;
  std::vector<QuantizedInput> quantized;  // they are frozen
  Place place;
  std::string layer;
  bool operator==(const BlockOptions&) const = default;
};

///// Operation

/// The program's results for these inputs, one array an output. Inputs are
/// float32, float16 or bfloat16 of any strides, or quantised.
std::vector<mx::array> block(
    const std::vector<mx::array>& inputs,
    const BlockOptions& options,
    const std::shared_ptr<BlockTransforms>& transforms,
    const mx::StreamOrDevice& stream);

///// Primitive

class ANEBlock : public PrimitiveOf<BlockOptions> {
 public:
  ANEBlock(
      mx::Stream stream,
      BlockOptions options,
      std::shared_ptr<BlockTransforms> transforms)
      : PrimitiveOf(stream, std::move(options)),
        transforms_(std::move(transforms)),
        layer_(trace::layer(options_.layer)) {
  }

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_NAME(ANEBlock)
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  std::shared_ptr<BlockTransforms> transforms_;
  std::shared_ptr<trace::Layer> layer_;
};

}  // namespace mlx_ane
