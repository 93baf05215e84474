// Sum over all axes but the last: the bias gradient of a linear layer.
#pragma once

#include "ops/primitive.h"

namespace mlx_ane {

/// x (..., N) -> (N) in `dtype`, accumulated in double.
mx::array row_sum(const mx::array& x, mx::Dtype dtype, mx::Stream stream);

struct RowSumOptions {
  mx::Dtype dtype;  // of the result
  bool operator==(const RowSumOptions&) const = default;
};

class RowSum : public PrimitiveOf<RowSumOptions> {
 public:
  using PrimitiveOf::PrimitiveOf;

  void eval_cpu(
      const std::vector<mx::array>& inputs,
      std::vector<mx::array>& outputs) override;
  DEFINE_GRADS()
  DEFINE_VMAP()
  DEFINE_NAME(ANERowSum)
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;
};

}  // namespace mlx_ane
