// conv and conv_transpose by im2col, of one to three spatial axes.
#include <algorithm>

#include "device/emulated/product.h"
#include "device/emulated/window.h"

namespace mlx_ane::emulated {

namespace {

struct Convolution {
  Operand x, weight, bias, z;
  int64_t batch, groups, in_channels, out_channels;
  std::vector<int64_t> kernel;
};

Convolution convolution(const Call& call, bool transposed) {
  Convolution c{
      call.operand("x"),
      call.operand("weight"),
      call.optional("bias"),
      call.results[0],
      0,
      0,
      0,
      0,
      {}};
  auto &x = c.x.shape(), &w = c.weight.shape();
  call.need(
      mil::is_float(c.x.type.dtype) && c.x.type.dtype == c.weight.type.dtype,
      "x and weight must be of one float type");
  call.need(
      w.size() >= 3 && w.size() == x.size(),
      "x " + to_string(x) + " and weight " + to_string(w) +
          " must be of one rank, three to five");
  c.batch = x[0];
  c.in_channels = x[1];
  c.groups = call.integer("groups", 1);
  call.need(c.groups >= 1, "groups must be positive");
  c.out_channels = transposed ? w[1] * c.groups : w[0];
  auto weight_in = transposed ? w[0] : w[1] * c.groups;
  call.need(
      weight_in == c.in_channels && c.in_channels % c.groups == 0 &&
          c.out_channels % c.groups == 0,
      "x has " + std::to_string(c.in_channels) + " channels, but weight " +
          to_string(w) + " with " + std::to_string(c.groups) +
          " groups needs " + std::to_string(weight_in));
  call.need(
      !c.bias || (c.bias.shape() == Shape{c.out_channels} &&
                  mil::is_float(c.bias.type.dtype)),
      "bias must have one value an output channel");
  c.kernel.assign(w.begin() + 2, w.end());
  return c;
}

bool is_pointwise(const Window& w) {
  auto unit = [](const int64_t (&v)[3], int64_t value) {
    return std::all_of(v, v + 3, [&](auto e) { return e == value; });
  };
  return unit(w.kernel, 1) && unit(w.stride, 1) && unit(w.before, 0) &&
         unit(w.after, 0);
}

// weight (O, I / groups, kernel): each group is (O/g, I/g * kernel) times the
// columns (I/g * kernel, out) of its channels.
LoweredOp conv(const Call& call) {
  auto c = convolution(call, false);
  auto w = window_of(call, c.x.shape(), c.kernel);
  auto in = c.in_channels / c.groups, out = c.out_channels / c.groups;
  Product p{out, w.out_size(), in * w.kernel_size()};
  bool pointwise = is_pointwise(w);
  LoweredOp lowered({{c.x.type.dtype, w.shape(c.batch, c.out_channels)}});
  lowered.scratch_bytes = pointwise ? 0 : p.k * p.n * element_size;
  lowered.kernel = [=](const Frame& frame) {
    auto *x = c.x.floats(frame), *weight = c.weight.floats(frame);
    auto* bias = c.bias ? c.bias.floats(frame) : nullptr;
    auto* y = c.z.floats(frame);
    for (int64_t b = 0; b < c.batch * c.groups; ++b) {
      auto g = b % c.groups;
      auto* columns = x + b * in * w.in_size();
      if (!pointwise) {
        auto* scratch = reinterpret_cast<float*>(frame.scratch);
        im2col(w, in, columns, scratch);
        columns = scratch;
      }
      multiply(
          p,
          weight + g * p.m * p.k,
          columns,
          bias ? bias + g * out : nullptr,
          y + b * p.m * p.n,
          frame.numerics);
    }
  };
  return lowered;
}

/// The window of which conv_transpose is the transpose: `in` is its output.
Window transposed_window(const Call& call, const Convolution& c) {
  auto rank = c.kernel.size();
  auto strides = call.integers("strides", std::vector<int64_t>(rank, 1));
  auto dilations = call.integers("dilations", std::vector<int64_t>(rank, 1));
  auto pad = call.integers("pad", std::vector<int64_t>(2 * rank, 0));
  auto type = call.text("pad_type", "valid");
  call.need(
      rank <= 3 && strides.size() == rank && dilations.size() == rank &&
          pad.size() == 2 * rank,
      "strides, dilations and pad must match the spatial axes");
  Shape large = {c.batch, c.out_channels};
  for (size_t i = 0; i < rank; ++i) {
    auto size = c.x.shape()[i + 2];
    call.need(
        strides[i] >= 1 && strides[i] <= 1 << 20 && dilations[i] >= 1 &&
            dilations[i] <= 1 << 20,
        "strides and dilations must be from 1 to 2^20");
    auto reach = (c.kernel[i] - 1) * dilations[i] + 1;
    auto full = (size - 1) * strides[i] + reach;
    if (type == "same" || type == "same_lower") {
      full = size * strides[i];
    } else if (type == "custom") {
      full -= pad[2 * i] + pad[2 * i + 1];
    }
    large.push_back(full);
  }
  if (call.has("output_shape")) {
    auto wanted = call.integers("output_shape");
    call.need(
        wanted.size() == rank || wanted.size() == rank + 2,
        "output_shape must name every spatial axis");
    std::copy(wanted.end() - rank, wanted.end(), large.begin() + 2);
  }
  for (auto size : large) {
    call.need(size >= 0, "the output would have a negative size");
  }
  auto w = window_of(call, large, c.kernel);
  for (size_t i = 0; i < rank; ++i) {
    call.need(
        w.out[3 - rank + i] == c.x.shape()[i + 2],
        "output_shape does not fit x, strides and pad");
  }
  return w;
}

// weight (I, O / groups, kernel): columns = weightᵀ x, added where they came
// from.
LoweredOp conv_transpose(const Call& call) {
  auto c = convolution(call, true);
  auto w = transposed_window(call, c);
  auto in = c.in_channels / c.groups, out = c.out_channels / c.groups;
  Product p{out * w.kernel_size(), w.out_size(), in, true, false};
  Shape shape = {c.batch, c.out_channels};
  shape.insert(shape.end(), w.in + 3 - w.rank, w.in + 3);
  LoweredOp lowered({{c.x.type.dtype, shape}});
  lowered.scratch_bytes = p.m * p.n * element_size;
  lowered.kernel = [=](const Frame& frame) {
    auto *x = c.x.floats(frame), *weight = c.weight.floats(frame);
    auto* bias = c.bias ? c.bias.floats(frame) : nullptr;
    auto* columns = reinterpret_cast<float*>(frame.scratch);
    for (int64_t b = 0; b < c.batch * c.groups; ++b) {
      auto g = b % c.groups;
      multiply(
          p,
          weight + g * p.m * p.k,
          x + b * p.k * p.n,
          nullptr,
          columns,
          frame.numerics);
      auto* y = c.z.floats(frame) + b * out * w.in_size();
      for (int64_t o = 0; o < out; ++o) {
        std::fill_n(
            y + o * w.in_size(), w.in_size(), bias ? bias[g * out + o] : 0.0f);
      }
      col2im(w, out, columns, y);
    }
  };
  return lowered;
}

constexpr Op table[] = {
    {"conv", conv, "iOS15 conv: conv"},
    {"conv_transpose", conv_transpose, "iOS15 conv: conv_transpose"},
};

}  // namespace

std::span<const Op> conv_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
