// Base of fused primitives: transformations without a kernel use MLX's own ops.
#pragma once

#include <functional>
#include <vector>

#include "ops/primitive.h"

namespace mlx_ane {

/// A primitive with an equivalent composition of MLX ops, from which forward
/// mode, vmap and every gradient without a kernel of its own are taken.
class Fused : public CpuPrimitive {
 public:
  using Function =
      std::function<std::vector<mx::array>(const std::vector<mx::array>&)>;

  Fused(mx::Stream stream, Function composition)
      : CpuPrimitive(stream), composition_(std::move(composition)) {
  }

  DEFINE_GRADS()
  DEFINE_VMAP()

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
