// Activation functions, softmax included; tables in the exact numerics.
#include <cmath>

#include "device/emulated/broadcast.h"
#include "device/emulated/tables.h"
#include "device/emulated/unary.h"
#include "host/loops.h"

namespace mlx_ane::emulated {

namespace {

float sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

void sigmoid_run(const float* x, float* y, int64_t n) {
  host::loops().exp_sum(x, -1.0f, 0.0f, y, n);
  for (int64_t i = 0; i < n; ++i) {
    y[i] = 1.0f / (1.0f + y[i]);
  }
}

LoweredOp sigmoid_op(const Call& call) {
  return or_table(call, unary_runs(call, sigmoid_run), table_sigmoid);
}

LoweredOp tanh_op(const Call& call) {
  return unary_table(call, [](float x) { return std::tanh(x); }, table_tanh);
}

LoweredOp silu(const Call& call) {
  auto run = [](const float* x, float* y, int64_t n) {
    sigmoid_run(x, y, n);
    for (int64_t i = 0; i < n; ++i) {
      y[i] *= x[i];
    }
  };
  return or_table(call, unary_runs(call, run), table_silu);
}

LoweredOp gelu(const Call& call) {
  auto mode = call.text("mode", "EXACT");
  if (mode == "EXACT") {
    return unary_table(
        call,
        // erfc keeps its digits where 1 + erf loses them.
        [](float x) { return 0.5f * x * std::erfc(x * -0.70710678f); },
        table_gelu);
  }
  if (mode == "TANH_APPROXIMATION") {
    return unary_table(
        call,
        [](float x) {
          auto inner = 0.79788456f * (x + 0.044715f * x * x * x);
          return 0.5f * x * (1.0f + std::tanh(inner));
        },
        table_gelu);
  }
  call.need(
      mode == "SIGMOID_APPROXIMATION",
      "mode \"" + mode +
          "\" must be EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION");
  return unary_table(
      call, [](float x) { return x * sigmoid(1.702f * x); }, table_gelu);
}

LoweredOp relu(const Call& call) {
  return unary_float(call, [](float x) { return x > 0 ? x : x != x ? x : 0; });
}

LoweredOp relu6(const Call& call) {
  return unary_float(call, [](float x) {
    return x > 6 ? 6 : x > 0 || x != x ? x : 0;
  });
}

LoweredOp leaky_relu(const Call& call) {
  return unary_float(call, [a = call.number("alpha", 0.01f)](float x) {
    return x >= 0 ? x : a * x;
  });
}

LoweredOp clamped_relu(const Call& call) {
  auto a = call.number("alpha", 1.0f), b = call.number("beta", 1.0f);
  return unary_float(
      call, [=](float x) { return std::min(b, x >= 0 ? x : a * x); });
}

LoweredOp thresholded_relu(const Call& call) {
  return unary_float(call, [a = call.number("alpha", 1.0f)](float x) {
    return x >= a ? x : 0;
  });
}

LoweredOp elu(const Call& call) {
  return unary_float(call, [a = call.number("alpha", 1.0f)](float x) {
    return x >= 0 ? x : a * std::expm1(x);
  });
}

LoweredOp linear_activation(const Call& call) {
  auto a = call.number("alpha", 1.0f), b = call.number("beta", 0.0f);
  return unary_float(call, [=](float x) { return a * x + b; });
}

LoweredOp scaled_tanh(const Call& call) {
  auto a = call.number("alpha", 1.0f), b = call.number("beta", 1.0f);
  return unary_table(
      call,
      [=](float x) { return a * std::tanh(b * x); },
      [=](float x) { return a * table_tanh(b * x); });
}

LoweredOp sigmoid_hard(const Call& call) {
  auto a = call.number("alpha", 0.2f), b = call.number("beta", 0.5f);
  return unary_float(
      call, [=](float x) { return std::clamp(a * x + b, 0.0f, 1.0f); });
}

float softplus_of(float x) {
  return x > 20 ? x : std::log1p(std::exp(x));
}

// The engine forms exp in fp16, so results above 11 are lost (M5 Max notes:
// wrong above about 10).
float narrow_softplus(float x) {
  float e = std::exp(x);
  return e >= 65520.0f ? INFINITY : std::log1p(e);
}

LoweredOp softplus(const Call& call) {
  return unary_table(call, softplus_of, narrow_softplus);
}

LoweredOp softsign(const Call& call) {
  return unary_float(call, [](float x) { return x / (1 + std::fabs(x)); });
}

/// Shape (C, 1, ...) of a per-channel parameter beside x (B, C, ...).
Shape channel_shape(const Call& call, const char* name) {
  auto &x = call.operand("x"), &a = call.operand(name);
  call.need(
      x.shape().size() >= 2 && a.shape().size() == 1 &&
          a.shape()[0] == x.shape()[1],
      std::string(name) + " must hold one value a channel (axis 1 of x)");
  call.need(mil::is_float(x.type.dtype), "x must be fp16 or fp32");
  Shape out(x.shape().size() - 1, 1);
  out[0] = a.shape()[0];
  return out;
}

LoweredOp prelu(const Call& call) {
  auto x = call.operand("x"), a = call.operand("alpha"), z = call.results[0];
  auto shape = channel_shape(call, "alpha");
  Loop<2> loop(x.shape(), {&x.shape(), &shape});
  return LoweredOp({x.type}, [=](const Frame& frame) {
    auto *px = x.floats(frame), *pa = a.floats(frame), *out = z.floats(frame);
    loop.run([&](int64_t at, auto offset, int64_t n, auto step) {
      for (int64_t i = 0; i < n; ++i) {
        auto v = px[offset[0] + i * step[0]];
        out[at + i] = v >= 0 ? v : v * pa[offset[1] + i * step[1]];
      }
    });
  });
}

LoweredOp softplus_parametric(const Call& call) {
  auto x = call.operand("x"), a = call.operand("alpha"),
       b = call.operand("beta"), z = call.results[0];
  auto shape = channel_shape(call, "alpha");
  channel_shape(call, "beta");
  Loop<2> loop(x.shape(), {&x.shape(), &shape});
  return LoweredOp({x.type}, [=](const Frame& frame) {
    auto *px = x.floats(frame), *pa = a.floats(frame), *pb = b.floats(frame);
    auto* out = z.floats(frame);
    loop.run([&](int64_t at, auto offset, int64_t n, auto step) {
      for (int64_t i = 0; i < n; ++i) {
        auto channel = offset[1] + i * step[1];
        out[at + i] = pa[channel] *
                      softplus_of(pb[channel] * px[offset[0] + i * step[0]]);
      }
    });
  });
}

void softmax_row(const float* x, float* out, int64_t n) {
  auto& loops = host::loops();
  auto sum = loops.exp_sum(x, 1.0f, loops.maximum(x, n), out, n);
  loops.scale_add(out, 1.0f / sum, 0.0f, n);
}

/// One softmax over `n` elements `stride` apart.
void softmax_line(const float* x, float* out, int64_t n, int64_t stride) {
  float largest = -INFINITY;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, x[i * stride]);
  }
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    auto e = std::exp(x[i * stride] - largest);
    out[i * stride] = e;
    sum += e;
  }
  auto scale = 1.0f / sum;
  for (int64_t i = 0; i < n; ++i) {
    out[i * stride] *= scale;
  }
}

LoweredOp softmax(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  call.need(mil::is_float(x.type.dtype), "x must be fp16 or fp32");
  call.need(!x.shape().empty(), "x must not be a scalar");
  auto axis = call.axis(call.integer("axis", -1), x.shape().size());
  auto n = x.shape()[axis], stride = strides_of(x.shape())[axis];
  if (stride == 1) {
    return LoweredOp::by_rows(
        x.type, [=](const Frame& frame, int64_t first, int64_t last) {
          auto *a = x.floats(frame), *out = z.floats(frame);
          for (int64_t r = first; r < last; ++r) {
            softmax_row(a + r * n, out + r * n, n);
          }
        });
  }
  auto outer = n * stride == 0 ? 0 : x.size() / (n * stride);
  return LoweredOp({x.type}, [=](const Frame& frame) {
    auto *a = x.floats(frame), *out = z.floats(frame);
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < stride; ++i) {
        auto at = o * n * stride + i;
        softmax_line(a + at, out + at, n, stride);
      }
    }
  });
}

constexpr Op table[] = {
    {"clamped_relu", clamped_relu, "iOS15 activation: clamped_relu"},
    {"elu", elu, "iOS15 activation: elu"},
    {"gelu", gelu, "iOS15 activation: gelu"},
    {"leaky_relu", leaky_relu, "iOS15 activation: leaky_relu"},
    {"linear_activation",
     linear_activation,
     "iOS15 activation: linear_activation"},
    {"prelu", prelu, "iOS15 activation: prelu"},
    {"relu", relu, "iOS15 activation: relu"},
    {"relu6", relu6, "iOS15 activation: relu6"},
    {"scaled_tanh", scaled_tanh, "iOS15 activation: scaled_tanh"},
    {"sigmoid", sigmoid_op, "iOS15 activation: sigmoid"},
    {"sigmoid_hard", sigmoid_hard, "iOS15 activation: sigmoid_hard"},
    {"silu", silu, "iOS15 activation: silu"},
    {"softmax", softmax, "iOS15 activation: softmax"},
    {"softplus", softplus, "iOS15 activation: softplus"},
    {"softplus_parametric",
     softplus_parametric,
     "iOS15 activation: softplus_parametric"},
    {"softsign", softsign, "iOS15 activation: softsign"},
    {"tanh", tanh_op, "iOS15 elementwise_unary: tanh"},
    {"thresholded_relu",
     thresholded_relu,
     "iOS15 activation: thresholded_relu"},
};

}  // namespace

std::span<const Op> activation_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
