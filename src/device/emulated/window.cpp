// Window arithmetic of MIL's convolutions and pools.
#include "device/emulated/window.h"

#include <algorithm>

namespace mlx_ane::emulated {

Shape Window::shape(int64_t batch, int64_t channels) const {
  Shape out_shape = {batch, channels};
  for (size_t d = 3 - rank; d < 3; ++d) {
    out_shape.push_back(out[d]);
  }
  return out_shape;
}

static void set_padding(const Call& call, Window& w, bool ceil_mode) {
  auto type = call.text("pad_type", "valid");
  call.need(
      type == "valid" || type == "same" || type == "same_lower" ||
          type == "custom",
      "pad_type \"" + type + "\" must be valid, same, same_lower or custom");
  auto pad = call.integers("pad", std::vector<int64_t>(2 * w.rank, 0));
  call.need(pad.size() == 2 * w.rank, "pad must have two values an axis");
  for (size_t d = 0; d < 3; ++d) {
    w.before[d] = w.after[d] = 0;
    auto reach = (w.kernel[d] - 1) * w.dilation[d] + 1;
    if (d + w.rank >= 3 && type == "custom") {
      auto i = 2 * (d + w.rank - 3);
      w.before[d] = pad[i];
      w.after[d] = pad[i + 1];
      call.need(
          std::min(pad[i], pad[i + 1]) >= 0 &&
              std::max(pad[i], pad[i + 1]) <= 1 << 20,
          "pad is out of range");
    } else if (type == "same" || type == "same_lower") {
      auto tiles = (w.in[d] + w.stride[d] - 1) / w.stride[d];
      auto total =
          std::max<int64_t>((tiles - 1) * w.stride[d] + reach - w.in[d], 0);
      w.before[d] = type == "same" ? total / 2 : total - total / 2;
      w.after[d] = total - w.before[d];
    }
    auto room = w.in[d] + w.before[d] + w.after[d] - reach;
    call.need(
        room >= 0,
        "the window reaches over " + std::to_string(reach) +
            " elements, but x has " + std::to_string(room + reach) +
            " with its padding");
    w.out[d] = room / w.stride[d] + 1;
    bool starts_inside = w.out[d] * w.stride[d] < w.in[d] + w.before[d];
    if (ceil_mode && room % w.stride[d] != 0 && starts_inside) {
      ++w.out[d];
    }
  }
}

Window window_of(
    const Call& call,
    const Shape& x,
    const std::vector<int64_t>& kernel,
    bool ceil_mode) {
  Window w;
  w.rank = kernel.size();
  call.need(
      w.rank >= 1 && w.rank <= 3 && x.size() == w.rank + 2,
      "x " + to_string(x) + " must be (N, C, 1 to 3 spatial axes) and have " +
          std::to_string(kernel.size()) + " of them");
  auto strides = call.integers("strides", std::vector<int64_t>(w.rank, 1));
  auto dilations = call.integers("dilations", std::vector<int64_t>(w.rank, 1));
  call.need(
      strides.size() == w.rank && dilations.size() == w.rank,
      "strides and dilations must have one value a spatial axis");
  for (size_t d = 0; d < 3; ++d) {
    bool used = d + w.rank >= 3;
    auto i = d + w.rank - 3;
    w.in[d] = used ? x[i + 2] : 1;
    w.kernel[d] = used ? kernel[i] : 1;
    w.stride[d] = used ? strides[i] : 1;
    w.dilation[d] = used ? dilations[i] : 1;
    for (auto value : {w.kernel[d], w.stride[d], w.dilation[d]}) {
      call.need(
          value >= 1 && value <= 1 << 20,
          "kernel, strides and dilations must be from 1 to 2^20");
    }
  }
  set_padding(call, w, ceil_mode);
  return w;
}

/// body(row of columns, position in columns, position in x or -1 where padded).
template <class Body>
static void each_column(const Window& w, int64_t channels, Body&& body) {
  auto plane = w.in_size();
  int64_t at = 0;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t k = 0; k < w.kernel_size(); ++k) {
      auto kz = k / (w.kernel[1] * w.kernel[2]);
      auto ky = k / w.kernel[2] % w.kernel[1], kx = k % w.kernel[2];
      for (int64_t oz = 0; oz < w.out[0]; ++oz) {
        auto z = oz * w.stride[0] + kz * w.dilation[0] - w.before[0];
        for (int64_t oy = 0; oy < w.out[1]; ++oy) {
          auto y = oy * w.stride[1] + ky * w.dilation[1] - w.before[1];
          bool inside = z >= 0 && z < w.in[0] && y >= 0 && y < w.in[1];
          auto row = c * plane + (z * w.in[1] + y) * w.in[2];
          auto x = kx * w.dilation[2] - w.before[2];
          for (int64_t ox = 0; ox < w.out[2]; ++ox, x += w.stride[2]) {
            body(at++, inside && x >= 0 && x < w.in[2] ? row + x : -1);
          }
        }
      }
    }
  }
}

void im2col(const Window& w, int64_t channels, const float* x, float* columns) {
  each_column(w, channels, [&](int64_t at, int64_t from) {
    columns[at] = from >= 0 ? x[from] : 0.0f;
  });
}

void col2im(const Window& w, int64_t channels, const float* columns, float* x) {
  each_column(w, channels, [&](int64_t at, int64_t to) {
    if (to >= 0) {
      x[to] += columns[at];
    }
  });
}

}  // namespace mlx_ane::emulated
