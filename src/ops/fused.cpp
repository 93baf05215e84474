// Transformations of fused primitives by way of their composition.
#include "ops/fused.h"

#include <string>

namespace mlx_ane {

namespace {

std::vector<mx::array> select(
    const std::vector<mx::array>& arrays, const std::vector<int>& indices) {
  std::vector<mx::array> out;
  for (int i : indices) {
    out.push_back(arrays[i]);
  }
  return out;
}

}  // namespace

void Fused::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  throw std::runtime_error(
      std::string("[mlx_ane.fast] got a GPU stream for ") + name() +
      ", need a CPU stream; pass stream=mx.cpu.");
}

Fused::Function Fused::of(
    const std::vector<mx::array>& primals,
    const std::vector<int>& argnums) const {
  return [this, primals, argnums](const std::vector<mx::array>& asked) {
    auto inputs = primals;
    for (size_t i = 0; i < argnums.size(); ++i) {
      inputs[argnums[i]] = asked[i];
    }
    return composition_(inputs);
  };
}

std::vector<mx::array> Fused::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents,
    const std::vector<int>& argnums) {
  return mx::jvp(of(primals, argnums), select(primals, argnums), tangents)
      .second;
}

std::vector<mx::array> Fused::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  return mx::vjp(of(primals, argnums), select(primals, argnums), cotangents)
      .second;
}

std::pair<std::vector<mx::array>, std::vector<int>> Fused::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto outputs = mx::vmap(composition_, axes)(inputs);
  return {outputs, std::vector<int>(outputs.size(), 0)};
}

}  // namespace mlx_ane
