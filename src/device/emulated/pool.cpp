// Pools over windows of one to three spatial axes.
#include <algorithm>
#include <cmath>

#include "device/emulated/window.h"

namespace mlx_ane::emulated {

namespace {

enum class Pool { average, maximum, l2 };

/// One window: what of it lies in x (plane of one channel), reduced.
float reduce_window(
    const Window& w,
    const float* plane,
    const int64_t (&start)[3],
    Pool pool,
    int64_t padded_count) {
  float largest = -INFINITY;
  double sum = 0;
  int64_t count = 0;
  int64_t low[3], high[3];
  for (int d = 0; d < 3; ++d) {
    low[d] = std::max<int64_t>(start[d], 0);
    high[d] = std::min(start[d] + w.kernel[d], w.in[d]);
  }
  for (auto z = low[0]; z < high[0]; ++z) {
    for (auto y = low[1]; y < high[1]; ++y) {
      for (auto x = low[2]; x < high[2]; ++x) {
        auto v = plane[(z * w.in[1] + y) * w.in[2] + x];
        largest = std::max(largest, v);
        sum += pool == Pool::l2 ? static_cast<double>(v) * v : v;
        ++count;
      }
    }
  }
  switch (pool) {
    case Pool::maximum:
      return largest;
    case Pool::l2:
      return static_cast<float>(std::sqrt(sum));
    default:
      count = padded_count > 0 ? padded_count : count;
      return count ? static_cast<float>(sum / static_cast<double>(count)) : 0;
  }
}

/// Elements of a window within x and its padding (ceil_mode reaches past both).
int64_t padded_size(const Window& w, const int64_t (&start)[3]) {
  int64_t n = 1;
  for (int d = 0; d < 3; ++d) {
    n *= std::min(start[d] + w.kernel[d], w.in[d] + w.after[d]) - start[d];
  }
  return n;
}

template <Pool pool>
LoweredOp pool_op(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  call.need(mil::is_float(x.type.dtype), "x must be fp16 or fp32");
  auto w = window_of(
      call,
      x.shape(),
      call.integers("kernel_sizes"),
      call.flag("ceil_mode", false));
  bool exclude = call.flag("exclude_padding_from_average", false);
  auto planes = x.shape()[0] * x.shape()[1];
  auto shape = w.shape(x.shape()[0], x.shape()[1]);
  return LoweredOp({{x.type.dtype, shape}}, [=](const Frame& frame) {
    auto* out = z.floats(frame);
    for (int64_t p = 0; p < planes; ++p) {
      auto* plane = x.floats(frame) + p * w.in_size();
      for (int64_t o = 0; o < w.out_size(); ++o) {
        int64_t start[3] = {
            o / (w.out[1] * w.out[2]), o / w.out[2] % w.out[1], o % w.out[2]};
        for (int d = 0; d < 3; ++d) {
          start[d] = start[d] * w.stride[d] - w.before[d];
        }
        *out++ = reduce_window(
            w, plane, start, pool, exclude ? 0 : padded_size(w, start));
      }
    }
  });
}

constexpr Op table[] = {
    {"avg_pool", pool_op<Pool::average>, "iOS15 pool: avg_pool"},
    {"max_pool", pool_op<Pool::maximum>, "iOS15 pool: max_pool"},
    {"l2_pool", pool_op<Pool::l2>, "iOS15 pool: l2_pool"},
};

}  // namespace

std::span<const Op> pool_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
