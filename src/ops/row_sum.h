// Sum over all axes but the last: the bias gradient of a linear layer.
#pragma once

#include "mlx/mlx.h"
#include "mlx/primitives.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// x (..., N) -> (N) in `dtype`, accumulated in double.
mx::array row_sum(const mx::array& x, mx::Dtype dtype, mx::Stream stream);

class RowSum : public mx::Primitive {
 public:
  RowSum(mx::Stream stream, mx::Dtype dtype)
      : mx::Primitive(stream), dtype_(dtype) {
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
    return "ANERowSum";
  }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 private:
  mx::Dtype dtype_;
};

}  // namespace mlx_ane
