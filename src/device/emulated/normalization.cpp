// Normalisations; sums are fp32 or wider, results rounded once.
#include <cmath>

#include "device/emulated/broadcast.h"
#include "device/emulated/reduction_axes.h"

namespace mlx_ane::emulated {

namespace {

const Operand& float_operand(const Call& call, const char* name) {
  auto& x = call.operand(name);
  call.need(
      mil::is_float(x.type.dtype), std::string(name) + " must be fp16 or fp32");
  return x;
}

/// A per-channel parameter (C), or nothing.
Operand channel_operand(const Call& call, const char* name, int64_t channels) {
  auto value = call.optional(name);
  call.need(
      !value || (value.size() == channels && mil::is_float(value.type.dtype)),
      std::string(name) + " must have one value a channel");
  return value;
}

// (x - mean) * gamma / sqrt(variance + epsilon) + beta over x (N, C, ...)
LoweredOp batch_norm(const Call& call) {
  auto x = float_operand(call, "x"), z = call.results[0];
  call.need(x.shape().size() >= 2, "x must be (N, C, ...)");
  auto channels = x.shape()[1];
  auto mean = channel_operand(call, "mean", channels);
  auto variance = channel_operand(call, "variance", channels);
  call.need(mean && variance, "mean and variance are missing");
  auto gamma = channel_operand(call, "gamma", channels);
  auto beta = channel_operand(call, "beta", channels);
  auto epsilon = call.number("epsilon", 1e-5f);
  auto batch = x.shape()[0];
  auto plane = x.size() / std::max<int64_t>(batch * channels, 1);
  return LoweredOp({x.type}, [=](const Frame& frame) {
    auto *in = x.floats(frame), *out = z.floats(frame);
    for (int64_t i = 0; i < batch * channels; ++i) {
      auto c = i % channels;
      auto scale = (gamma ? gamma.floats(frame)[c] : 1.0f) /
                   std::sqrt(variance.floats(frame)[c] + epsilon);
      auto m = mean.floats(frame)[c];
      auto shift = beta ? beta.floats(frame)[c] : 0.0f;
      for (int64_t j = i * plane; j < (i + 1) * plane; ++j) {
        out[j] = (in[j] - m) * scale + shift;
      }
    }
  });
}

/// Mean and 1 / sqrt(variance + epsilon) of the elements of one reduction.
struct Moments {
  double mean, scale;

  Moments(
      const ReductionAxes& reduction,
      int64_t start,
      const float* x,
      double epsilon) {
    auto n = static_cast<double>(reduction.length());
    double sum = 0, squares = 0;
    reduction.along(start, [&](int64_t p) { sum += x[p]; });
    mean = sum / n;
    reduction.along(start, [&](int64_t p) {
      auto d = x[p] - mean;
      squares += d * d;
    });
    scale = 1.0 / std::sqrt(squares / n + epsilon);
  }
};

LoweredOp instance_norm(const Call& call) {
  auto x = float_operand(call, "x"), z = call.results[0];
  call.need(x.shape().size() >= 3, "x must be (N, C, ...)");
  auto channels = x.shape()[1];
  auto gamma = channel_operand(call, "gamma", channels);
  auto beta = channel_operand(call, "beta", channels);
  auto epsilon = call.number("epsilon", 1e-5f);
  std::vector<int64_t> axes;
  for (size_t d = 2; d < x.shape().size(); ++d) {
    axes.push_back(static_cast<int64_t>(d));
  }
  ReductionAxes reduction(x.shape(), axes);
  return LoweredOp({x.type}, [=](const Frame& frame) {
    auto *in = x.floats(frame), *out = z.floats(frame);
    reduction.each([&](int64_t i, int64_t start) {
      Moments m(reduction, start, in, epsilon);
      double g = gamma ? gamma.floats(frame)[i % channels] : 1;
      double b = beta ? beta.floats(frame)[i % channels] : 0;
      reduction.along(start, [&](int64_t p) {
        out[p] = static_cast<float>((in[p] - m.mean) * m.scale * g + b);
      });
    });
  });
}

// gamma and beta have the shape of the normalised axes.
LoweredOp layer_norm(const Call& call) {
  auto x = float_operand(call, "x"), z = call.results[0];
  auto gamma = call.optional("gamma"), beta = call.optional("beta");
  auto epsilon = call.number("epsilon", 1e-5f);
  auto axes = call.axes("axes", x.shape().size());
  ReductionAxes reduction(x.shape(), axes);
  for (auto* value : {&gamma, &beta}) {
    call.need(
        !*value || (value->size() == reduction.length() &&
                    mil::is_float(value->type.dtype)),
        "gamma and beta must have the shape of the normalised axes");
  }
  return LoweredOp({x.type}, [=](const Frame& frame) {
    auto *in = x.floats(frame), *out = z.floats(frame);
    auto* g = gamma ? gamma.floats(frame) : nullptr;
    auto* b = beta ? beta.floats(frame) : nullptr;
    reduction.each([&](int64_t, int64_t start) {
      Moments m(reduction, start, in, epsilon);
      int64_t i = 0;
      reduction.along(start, [&](int64_t p) {
        auto v = (in[p] - m.mean) * m.scale;
        out[p] = static_cast<float>(v * (g ? g[i] : 1) + (b ? b[i] : 0));
        ++i;
      });
    });
  });
}

// Over the last three axes: x / sqrt(sum x^2 + epsilon)
LoweredOp l2_norm(const Call& call) {
  auto x = float_operand(call, "x"), z = call.results[0];
  auto rank = static_cast<int64_t>(x.shape().size());
  call.need(rank >= 3, "x must have at least three axes");
  auto epsilon = call.number("epsilon", 1e-6f);
  ReductionAxes reduction(x.shape(), {rank - 3, rank - 2, rank - 1});
  return LoweredOp({x.type}, [=](const Frame& frame) {
    auto *in = x.floats(frame), *out = z.floats(frame);
    reduction.each([&](int64_t, int64_t start) {
      double sum = 0;
      reduction.along(
          start, [&](int64_t p) { sum += static_cast<double>(in[p]) * in[p]; });
      auto scale = 1.0 / std::sqrt(sum + epsilon);
      reduction.along(start, [&](int64_t p) {
        out[p] = static_cast<float>(in[p] * scale);
      });
    });
  });
}

// x / (k + alpha / size * sum over `size` channels of x^2)^beta, x (N, C, ...)
LoweredOp local_response_norm(const Call& call) {
  auto x = float_operand(call, "x"), z = call.results[0];
  call.need(x.shape().size() >= 3, "x must be (N, C, ...)");
  auto size = call.integer("size");
  call.need(size >= 1, "size must be positive");
  auto alpha = call.number("alpha", 1e-4f), beta = call.number("beta", 0.75f);
  auto k = call.number("k", 1.0f);
  auto batch = x.shape()[0], channels = x.shape()[1];
  auto plane = x.size() / std::max<int64_t>(batch * channels, 1);
  return LoweredOp({x.type}, [=](const Frame& frame) {
    auto *in = x.floats(frame), *out = z.floats(frame);
    for (int64_t i = 0; i < batch * channels * plane; ++i) {
      auto c = i / plane % channels;
      auto low = std::max<int64_t>(c - size / 2, 0);
      auto high = std::min(c - size / 2 + size, channels);
      double sum = 0;
      for (auto other = low; other < high; ++other) {
        double v = in[i + (other - c) * plane];
        sum += v * v;
      }
      out[i] = static_cast<float>(
          in[i] / std::pow(k + alpha / static_cast<double>(size) * sum, beta));
    }
  });
}

constexpr Op table[] = {
    {"batch_norm", batch_norm, "iOS15 normalization: batch_norm"},
    {"instance_norm", instance_norm, "iOS15 normalization: instance_norm"},
    {"l2_norm", l2_norm, "iOS15 normalization: l2_norm"},
    {"layer_norm", layer_norm, "iOS15 normalization: layer_norm"},
    {"local_response_norm",
     local_response_norm,
     "iOS15 normalization: local_response_norm"},
};

}  // namespace

std::span<const Op> normalization_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
