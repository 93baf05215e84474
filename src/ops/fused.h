// Base of fused primitives: what has no kernel is derived from MLX's own ops.
#pragma once

#include <functional>
#include <vector>

#include "mlx/mlx.h"
#include "mlx/primitives.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// A primitive with an equivalent composition of MLX ops, from which forward
/// mode, vmap and every gradient without a kernel of its own are taken.
class Fused : public mx::Primitive {
 public:
  using Function =
      std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

  Fused(mx::Stream stream, Function composition)
      : mx::Primitive(stream), composition_(std::move(composition)) {
  }

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

 protected:
  const Function composition_;

 private:
  /// The composition as a function of the arguments `argnums` alone: the others
  /// may be integers, which MLX does not differentiate.
  Function of(
      const std::vector<mx::array>& primals,
      const std::vector<int>& argnums) const;
};

}  // namespace mlx_ane
