// One fused pass of Adam/AdamW, and the sum of squares of its gradients.
#include "kernels/adam.h"

#include "kernels/half.h"

namespace mlx_ane::kernels {

void adam(const AdamTensor& tensor, const AdamStep& step) {
  adam_reference(tensor, step);
}

double sum_of_squares(const void* g, Float type, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    auto at = static_cast<const char*>(g) + i * size_of(type);
    float value;
    to_float(at, type, &value, 1);
    sum += static_cast<double>(value) * value;
  }
  return sum;
}

} // namespace mlx_ane::kernels
