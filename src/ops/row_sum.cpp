// RowSum: one task over the column-sum kernel.
#include "ops/row_sum.h"

#include <numeric>

#include "kernels/column_sums.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"

namespace mlx_ane {

mx::array row_sum(const mx::array& x, mx::Dtype dtype, mx::Stream stream) {
  return mx::array(
      mx::Shape{x.shape(-1)},
      dtype,
      std::make_shared<RowSum>(stream, RowSumOptions{dtype}),
      {x});
}

void RowSum::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& out = outputs[0];
  allocate(out);
  encoder(inputs, outputs)
      .dispatch([x = HostMatrix::rows(inputs[0]),
                 type = float_type(options_.dtype),
                 data = out.data<void>()] {
        kernels::column_sums(x.view(), type, data);
      });
}

std::vector<mx::array> RowSum::jvp(
    const std::vector<mx::array>&,
    const std::vector<mx::array>& tangents,
    const std::vector<int>&) {
  return {row_sum(tangents[0], options_.dtype, stream())};
}

std::vector<mx::array> RowSum::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>&,
    const std::vector<mx::array>&) {
  auto dx = mx::astype(cotangents[0], primals[0].dtype(), stream());
  return {mx::broadcast_to(dx, primals[0].shape(), stream())};
}

std::pair<std::vector<mx::array>, std::vector<int>> RowSum::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  // (V, ..., N): every axis between the first and the last is summed.
  auto x = mx::moveaxis(inputs[0], axes[0], 0, stream());
  std::vector<int> inner(x.ndim() - 2);
  std::iota(inner.begin(), inner.end(), 1);
  auto sums =
      mx::sum(mx::astype(x, mx::float32, stream()), inner, false, stream());
  return {{mx::astype(sums, options_.dtype, stream())}, {0}};
}

std::vector<mx::Shape> RowSum::output_shapes(
    const std::vector<mx::array>& inputs) {
  return {{inputs[0].shape(-1)}};
}

}  // namespace mlx_ane
