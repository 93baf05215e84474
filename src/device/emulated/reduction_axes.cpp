// Splits axes into reduced and kept ones and merges neighbouring ones.
#include "device/emulated/reduction_axes.h"

#include <algorithm>

namespace mlx_ane::emulated {

static void append(Shape& sizes, Shape& strides, int64_t size, int64_t stride) {
  if (!sizes.empty() && strides.back() == stride * size) {
    sizes.back() *= size;
    strides.back() = stride;
  } else {
    sizes.push_back(size);
    strides.push_back(stride);
  }
}

ReductionAxes::ReductionAxes(
    const Shape& shape, const std::vector<int64_t>& axes) {
  auto strides = strides_of(shape);
  for (size_t d = 0; d < shape.size(); ++d) {
    bool reduced =
        std::find(axes.begin(), axes.end(), static_cast<int64_t>(d)) !=
        axes.end();
    if (reduced) {
      append(sizes_, strides_, shape[d], strides[d]);
      length_ *= shape[d];
    } else {
      append(kept_sizes_, kept_strides_, shape[d], strides[d]);
      count_ *= shape[d];
    }
  }
  for (auto [sizes, steps] :
       {std::pair(&sizes_, &strides_), {&kept_sizes_, &kept_strides_}}) {
    if (sizes->empty()) {
      sizes->push_back(1);
      steps->push_back(0);
    }
  }
}

Shape reduced_shape(
    const Shape& shape, const std::vector<int64_t>& axes, bool keep_dims) {
  Shape out;
  for (size_t d = 0; d < shape.size(); ++d) {
    bool reduced =
        std::find(axes.begin(), axes.end(), static_cast<int64_t>(d)) !=
        axes.end();
    if (!reduced) {
      out.push_back(shape[d]);
    } else if (keep_dims) {
      out.push_back(1);
    }
  }
  return out;
}

}  // namespace mlx_ane::emulated
