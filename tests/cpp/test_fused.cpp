// Fused attention, cross-entropy and SwiGLU against float64, gradients against
// finite differences of the float64 forms.
#include <algorithm>
#include <functional>
#include <random>

#include "check.h"
#include "host/half.h"
#include "host/loops.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/swiglu.h"

using namespace mlx_ane;
using namespace mlx_ane::kernels;

namespace {

using Values = std::vector<double>;

Values normal(int64_t n, std::mt19937& random) {
  std::normal_distribution<double> distribution;
  Values out(static_cast<size_t>(n));
  for (auto& value : out) {
    value = distribution(random);
  }
  return out;
}

/// (batch, heads, rows, cols) in the layout that models use: the heads of one
/// row side by side.
struct Tensor {
  std::vector<float> storage;
  std::vector<uint16_t> halves;
  Heads heads;

  Tensor(std::array<int64_t, 4> shape, Float type, Values& values) {
    auto [B, H, S, D] = shape;
    heads.shape = shape;
    heads.type = type;
    heads.strides = {S * H * D, D, H * D, 1};
    auto n = static_cast<size_t>(B * H * S * D);
    storage.resize(n + 2);
    halves.resize(n + 1);
    heads.data = type == Float::f32 ? static_cast<void*>(storage.data() + 2)
                                    : static_cast<void*>(halves.data() + 1);
    for (size_t i = 0; i < values.size(); ++i) {
      auto value = static_cast<float>(values[i]);
      host::from_float(&value, type, at(i), 1);
      host::to_float(at(i), type, &value, 1);
      values[i] = value;
    }
  }

  /// Element i of the row-major (B, H, S, D) order.
  void* at(size_t i) {
    auto [B, H, S, D] = heads.shape;
    auto index = static_cast<int64_t>(i);
    int64_t d = index % D, s = index / D % S, h = index / (D * S) % H;
    int64_t b = index / (D * S * H);
    auto& strides = heads.strides;
    int64_t offset =
        b * strides[0] + h * strides[1] + s * strides[2] + d * strides[3];
    return static_cast<char*>(heads.data) +
           offset * static_cast<int64_t>(size_of(heads.type));
  }

  Values values() {
    auto [B, H, S, D] = heads.shape;
    Values out(static_cast<size_t>(B * H * S * D));
    for (size_t i = 0; i < out.size(); ++i) {
      float value;
      host::to_float(at(i), heads.type, &value, 1);
      out[i] = value;
    }
    return out;
  }
};

struct Case {
  int64_t B, H, G, S, T, D, E;
  Mask::Kind mask;
  bool sinks;
  Float type;
};

struct Inputs {
  Values q, k, v, d_out, sinks;
  std::vector<uint8_t> boolean;  // (S, T)
  std::vector<float> additive;   // (S, T)
};

/// Attention by its definition; out: (B, H, S, E).
Values expected(const Case& c, const Inputs& x, double scale) {
  Values out(static_cast<size_t>(c.B * c.H * c.S * c.E));
  Values p(static_cast<size_t>(c.T));
  for (int64_t i = 0; i < c.B * c.H * c.S; ++i) {
    int64_t s = i % c.S, h = i / c.S % c.H, b = i / c.S / c.H;
    int64_t g = b * c.G + h / (c.H / c.G);
    double maximum = -INFINITY;
    for (int64_t t = 0; t < c.T; ++t) {
      p[t] = 0.0;
      for (int64_t d = 0; d < c.D; ++d) {
        p[t] += scale * x.q[i * c.D + d] * x.k[(g * c.T + t) * c.D + d];
      }
      bool hidden = (c.mask == Mask::Kind::causal && t > s + c.T - c.S) ||
                    (c.mask == Mask::Kind::boolean && !x.boolean[s * c.T + t]);
      p[t] = hidden ? -1e30 : p[t];
      p[t] += c.mask == Mask::Kind::additive ? x.additive[s * c.T + t] : 0.0;
      maximum = std::max(maximum, p[t]);
    }
    maximum = c.sinks ? std::max(maximum, x.sinks[h]) : maximum;
    double sum = c.sinks ? std::exp(x.sinks[h] - maximum) : 0.0;
    for (auto& value : p) {
      value = std::exp(value - maximum);
      sum += value;
    }
    for (int64_t t = 0; t < c.T; ++t) {
      for (int64_t e = 0; e < c.E; ++e) {
        out[i * c.E + e] += p[t] / sum * x.v[(g * c.T + t) * c.E + e];
      }
    }
  }
  return out;
}

/// Central differences of sum(f(x) * d_out) in every element of x.
Values differences(
    Values& x, const Values& d_out, const std::function<Values()>& f) {
  constexpr double step = 1e-5;
  Values gradient(x.size());
  auto loss = [&] {
    double sum = 0.0;
    auto out = f();
    for (size_t i = 0; i < out.size(); ++i) {
      sum += out[i] * d_out[i];
    }
    return sum;
  };
  for (size_t i = 0; i < x.size(); ++i) {
    double kept = x[i];
    x[i] = kept + step;
    double high = loss();
    x[i] = kept - step;
    double low = loss();
    x[i] = kept;
    gradient[i] = (high - low) / (2.0 * step);
  }
  return gradient;
}

bool close(const Values& got, const Values& want, double tolerance) {
  double largest = 1e-3;
  for (double value : want) {
    largest = std::max(largest, std::abs(value));
  }
  for (size_t i = 0; i < want.size(); ++i) {
    if (!(std::abs(got[i] - want[i]) <= tolerance * largest)) {
      std::printf("  element %zu: %g instead of %g\n", i, got[i], want[i]);
      return false;
    }
  }
  return got.size() == want.size();
}

double tolerance(Float type) {
  return type == Float::f32 ? 1e-5 : type == Float::f16 ? 3e-3 : 2e-2;
}

void check_attention(const Case& c, bool gradients) {
  std::mt19937 random(static_cast<uint32_t>(c.S * 100 + c.T));
  Inputs x{
      normal(c.B * c.H * c.S * c.D, random),
      normal(c.B * c.G * c.T * c.D, random),
      normal(c.B * c.G * c.T * c.E, random),
      normal(c.B * c.H * c.S * c.E, random),
      normal(c.H, random),
      {},
      {}};
  for (int64_t i = 0; i < c.S * c.T; ++i) {
    // Row 1 sees no key at all.
    x.boolean.push_back(i / c.T != 1 && random() % 3 > 0);
    x.additive.push_back(
        random() % 4 ? static_cast<float>(random() % 7) - 3.0f : -INFINITY);
  }
  for (int64_t s = 0; s < c.S; ++s) {
    x.additive[s * c.T] = 0.5f;
  }
  Tensor q({c.B, c.H, c.S, c.D}, c.type, x.q);
  Tensor k({c.B, c.G, c.T, c.D}, c.type, x.k);
  Tensor v({c.B, c.G, c.T, c.E}, c.type, x.v);
  Tensor d_out({c.B, c.H, c.S, c.E}, c.type, x.d_out);
  Values none;
  Tensor out({c.B, c.H, c.S, c.E}, c.type, none);
  std::vector<float> sinks(x.sinks.begin(), x.sinks.end());
  x.sinks.assign(sinks.begin(), sinks.end());
  float scale = 0.4f;
  Attention a{
      q.heads,
      k.heads,
      v.heads,
      scale,
      {c.mask,
       c.mask == Mask::Kind::boolean ? static_cast<void*>(x.boolean.data())
                                     : x.additive.data(),
       Float::f32,
       {0, 0, c.T, 1}},
      c.sinks ? sinks.data() : nullptr};
  std::vector<RowSoftmax> softmax(static_cast<size_t>(c.B * c.H * c.S));
  attention_forward(a, out.heads, softmax.data());
  auto forward = [&] { return expected(c, x, scale); };
  CHECK(close(out.values(), forward(), tolerance(c.type)));
  if (!gradients) {
    return;
  }
  Tensor dq({c.B, c.H, c.S, c.D}, c.type, none);
  Tensor dk({c.B, c.G, c.T, c.D}, c.type, none);
  Tensor dv({c.B, c.G, c.T, c.E}, c.type, none);
  std::vector<float> d_sinks(static_cast<size_t>(c.H));
  attention_backward(
      a,
      out.heads,
      softmax.data(),
      d_out.heads,
      dq.heads,
      dk.heads,
      dv.heads,
      c.sinks ? d_sinks.data() : nullptr);
  double t = 3.0 * tolerance(c.type);
  CHECK(close(dq.values(), differences(x.q, x.d_out, forward), t));
  CHECK(close(dk.values(), differences(x.k, x.d_out, forward), t));
  CHECK(close(dv.values(), differences(x.v, x.d_out, forward), t));
  if (c.sinks) {
    Values got(d_sinks.begin(), d_sinks.end());
    CHECK(close(got, differences(x.sinks, x.d_out, forward), t));
  }
}

}  // namespace

TEST(attention_and_its_gradients) {
  using enum Mask::Kind;
  for (auto kind : {none, causal, boolean, additive}) {
    for (bool sinks : {false, true}) {
      check_attention({2, 4, 2, 5, 7, 3, 4, kind, sinks, Float::f32}, true);
    }
  }
  check_attention({1, 2, 1, 6, 6, 4, 4, causal, false, Float::f16}, true);
  check_attention({1, 2, 1, 6, 6, 4, 4, causal, false, Float::bf16}, true);
  // More queries than keys: the first rows see no key.
  check_attention({1, 1, 1, 6, 4, 3, 3, causal, false, Float::f32}, true);
  check_attention({1, 1, 1, 6, 4, 3, 3, causal, true, Float::f32}, true);
  check_attention({1, 1, 1, 1, 1, 1, 1, none, false, Float::f32}, true);
}

TEST(attention_crosses_its_tiles) {
  using enum Mask::Kind;
  for (auto kind : {none, causal, boolean, additive}) {
    check_attention(
        {1, 3, 3, 131, 150, 17, 16, kind, false, Float::f32}, false);
  }
  check_attention({1, 1, 1, 64, 64, 8, 8, causal, false, Float::f32}, false);
  // The gradient of a tile border, on few elements.
  check_attention({1, 1, 1, 66, 66, 2, 1, causal, false, Float::f32}, true);
}

namespace {

/// Loss of each row; x: (tokens, vocabulary).
Values cross_entropy(
    const Values& x,
    const std::vector<int32_t>& targets,
    int64_t vocabulary,
    double smoothing) {
  Values loss;
  for (size_t t = 0; t < targets.size(); ++t) {
    const double* row = x.data() + t * static_cast<size_t>(vocabulary);
    double maximum = *std::max_element(row, row + vocabulary);
    double sum = 0.0, mean = 0.0;
    for (int64_t j = 0; j < vocabulary; ++j) {
      sum += std::exp(row[j] - maximum);
      mean += row[j] / static_cast<double>(vocabulary);
    }
    loss.push_back(
        maximum + std::log(sum) - (1.0 - smoothing) * row[targets[t]] -
        smoothing * mean);
  }
  return loss;
}

}  // namespace

TEST(cross_entropy_and_its_gradient) {
  std::mt19937 random(1);
  for (Float type : {Float::f32, Float::f16, Float::bf16}) {
    for (int64_t vocabulary : {1, 15, 17, 200}) {
      for (float smoothing : {0.0f, 0.25f}) {
        std::vector<int32_t> targets{
            0,
            static_cast<int32_t>(vocabulary - 1),
            static_cast<int32_t>(vocabulary / 2)};
        int64_t tokens = 3;
        Values x = normal(tokens * vocabulary, random);
        Values d_loss = normal(tokens, random);
        Tensor logits({1, 1, tokens, vocabulary}, type, x);
        Values none;
        Tensor grad({1, 1, tokens, vocabulary}, type, none);
        std::vector<float> loss(3), top(3), sum(3), weights(3);
        for (int i = 0; i < 3; ++i) {
          weights[i] = static_cast<float>(d_loss[i]);
          d_loss[i] = weights[i];
        }
        auto view = logits.heads.head(0, 0);
        cross_entropy_forward(
            view,
            targets.data(),
            smoothing,
            loss.data(),
            top.data(),
            sum.data());
        auto forward = [&] {
          return cross_entropy(x, targets, vocabulary, smoothing);
        };
        CHECK(close(Values(loss.begin(), loss.end()), forward(), 1e-5));
        cross_entropy_backward(
            view,
            targets.data(),
            smoothing,
            top.data(),
            sum.data(),
            weights.data(),
            {grad.heads.data, type, tokens, vocabulary, vocabulary});
        CHECK(close(
            grad.values(), differences(x, d_loss, forward), tolerance(type)));
      }
    }
  }
}

TEST(cross_entropy_of_targets_outside_and_large_logits) {
  // Row 0 ignores its target, row 1 counts it from the end, the logits of row 2
  // differ by less than their logsumexp's rounding, row 3 has no finite
  // maximum.
  std::vector<float> x{
      3.0f,
      -1.0f,
      2.0f,
      500.0f,
      -88.0f,
      88.0f,
      1e8f,
      1e8f,
      -1e8f,
      1.0f,
      2.0f,
      INFINITY};
  std::vector<int32_t> targets{-100, -3, 1, 0};
  std::vector<float> loss(4), top(4), sum(4), ones(4, 1.0f), grad(12);
  MatrixView view{x.data(), Float::f32, 4, 3, 3, 1};
  cross_entropy_forward(
      view, targets.data(), 0.0f, loss.data(), top.data(), sum.data());
  CHECK(loss[0] == 0.0f && loss[1] == 0.0f && std::isnan(loss[3]));
  CHECK(std::abs(loss[2] - std::log(2.0f)) < 1e-6f);
  cross_entropy_backward(
      view,
      targets.data(),
      0.0f,
      top.data(),
      sum.data(),
      ones.data(),
      {grad.data(), Float::f32, 4, 3, 3});
  CHECK(grad[0] == 0.0f && grad[1] == 0.0f && grad[2] == 0.0f);
  CHECK(grad[3] == 0.0f && grad[5] == 0.0f);
  CHECK(grad[6] == 0.5f && grad[7] == -0.5f && grad[8] == 0.0f);
  CHECK(std::isnan(grad[9]));
}

TEST(swiglu_and_its_gradient) {
  std::mt19937 random(2);
  for (Float type : {Float::f32, Float::f16, Float::bf16}) {
    for (int64_t n : {0, 1, 15, 17, 1025}) {
      Values gate = normal(n, random), up = normal(n, random);
      Values dy = normal(n, random), none;
      if (n > 15) {
        gate[3] = 60.0;
        gate[4] = -60.0;
      }
      Tensor g({1, 1, 1, n}, type, gate), u({1, 1, 1, n}, type, up);
      Tensor d({1, 1, 1, n}, type, dy), out({1, 1, 1, n}, type, none);
      Tensor dg({1, 1, 1, n}, type, none), du({1, 1, 1, n}, type, none);
      swiglu_forward(g.heads.data, u.heads.data, type, out.heads.data, n);
      swiglu_backward(
          g.heads.data,
          u.heads.data,
          d.heads.data,
          type,
          dg.heads.data,
          du.heads.data,
          n);
      Values y(gate.size()), want_dg(gate.size()), want_du(gate.size());
      for (size_t i = 0; i < gate.size(); ++i) {
        double s = 1.0 / (1.0 + std::exp(-gate[i]));
        y[i] = gate[i] * s * up[i];
        want_dg[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
        want_du[i] = dy[i] * gate[i] * s;
      }
      double t = tolerance(type) * 0.3;
      CHECK(close(out.values(), y, t));
      CHECK(close(dg.values(), want_dg, t));
      CHECK(close(du.values(), want_du, t));
    }
  }
}

TEST(every_target_computes_exp_alike) {
  std::vector<float> x, want;
  for (float value = -110.0f; value < 95.0f; value += 0.01f) {
    x.push_back(value);
  }
  x.insert(x.end(), {-INFINITY, INFINITY, NAN, 0.0f, -0.0f});
  for (auto& name : host::targets()) {
    host::set_target(name);
    std::vector<float> y(x.size());
    host::loops().exp_sum(x.data(), 1.0f, 0.0f, y.data(), (int64_t)x.size());
    int wrong = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      double exact = std::exp(static_cast<double>(x[i]));
      bool right = std::isnan(x[i]) ? std::isnan(y[i])
                   : x[i] < -87.3f  ? y[i] <= 1.3e-38f
                   : x[i] > 88.7f   ? y[i] > 3.3e38f
                                    : std::abs(y[i] - exact) <= 3e-7 * exact;
      wrong += !right;
    }
    CHECK(wrong == 0);
  }
  host::set_target("");
}

CHECK_MAIN()
