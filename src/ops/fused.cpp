// Transformations of fused primitives by way of their composition.
#include "ops/fused.h"

#include <algorithm>
#include <string>

namespace mlx_ane {

void Fused::eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) {
  throw std::runtime_error(
      std::string("[mlx_ane.fast] got a GPU stream for ") + name() +
      ", need a CPU stream; pass stream=mx.cpu.");
}

std::vector<mx::array> Fused::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents,
    const std::vector<int>& argnums) {
  std::vector<mx::array> all;
  for (int i = 0; i < static_cast<int>(primals.size()); ++i) {
    auto found = std::find(argnums.begin(), argnums.end(), i);
    all.push_back(
        found == argnums.end() ? mx::zeros_like(primals[i], stream())
                               : tangents[found - argnums.begin()]);
  }
  return mx::jvp(composition_, primals, all).second;
}

std::vector<mx::array> Fused::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  // Only the asked arguments are differentiated: others may be integers.
  auto partial = [&](const std::vector<mx::array>& asked) {
    auto inputs = primals;
    for (size_t i = 0; i < argnums.size(); ++i) {
      inputs[argnums[i]] = asked[i];
    }
    return composition_(inputs);
  };
  std::vector<mx::array> asked;
  for (int i : argnums) {
    asked.push_back(primals[i]);
  }
  return mx::vjp(partial, asked, cotangents).second;
}

std::pair<std::vector<mx::array>, std::vector<int>> Fused::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto outputs = mx::vmap(composition_, axes)(inputs);
  return {outputs, std::vector<int>(outputs.size(), 0)};
}

}  // namespace mlx_ane
