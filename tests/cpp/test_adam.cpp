// Adam, stochastic rounding and the gradient norm against float64.
#include <algorithm>
#include <cstring>
#include <random>

#include "check.h"
#include "host/half.h"
#include "host/loops.h"
#include "kernels/adam.h"

using namespace mlx_ane;
using namespace mlx_ane::kernels;

namespace {

const int64_t sizes[] = {0, 1, 15, 16, 17, 1023, 1024, 1025, 5000};

template <class Body>
void each_target(Body body) {
  for (auto& name : host::targets()) {
    host::set_target(name);
    int before = check::failures();
    body();
    if (check::failures() != before) {
      std::printf("  with target %s\n", name.c_str());
    }
  }
  host::set_target("");
}

/// An array of `type`, 8 bytes past an aligned address (2 for halves).
struct Array {
  Float type;
  int64_t n;
  std::vector<uint8_t> bytes;

  Array(Float type, const std::vector<float>& values)
      : type(type),
        n(static_cast<int64_t>(values.size())),
        bytes(values.size() * 4 + 80, 0xa5) {
    host::from_float(values.data(), type, data(), n);
  }
  void* data() {
    auto base = reinterpret_cast<uintptr_t>(bytes.data());
    auto offset = (64 - base % 64) % 64 + (type == Float::f32 ? 8 : 2);
    return bytes.data() + offset;
  }
  std::vector<float> values() {
    std::vector<float> out(static_cast<size_t>(n));
    host::to_float(data(), type, out.data(), n);
    return out;
  }
};

std::vector<float> normal(int64_t n, double scale, std::mt19937& random) {
  std::normal_distribution<double> distribution(0.0, scale);
  std::vector<float> out(static_cast<size_t>(n));
  for (auto& value : out) {
    value = static_cast<float>(distribution(random));
  }
  return out;
}

/// Relative spacing of a type, for tolerances.
double spacing(Float type) {
  return type == Float::f32 ? 4e-7 : type == Float::f16 ? 1e-3 : 8e-3;
}

bool near(double got, double want, Float type, double magnitude) {
  return std::abs(got - want) <= spacing(type) * magnitude + 6e-8;
}

AdamStep a_step() {
  AdamStep step;
  step.options.weight_decay = 0.01;
  step.learning_rate = 1e-3f;
  step.c1 = 1e-3f / (1.0f - 0.9f * 0.9f);
  step.c2 = 1.0f / std::sqrt(1.0f - 0.999f * 0.999f);
  step.gradient_scale = 0.25f;
  return step;
}

using Kernel = void (*)(const AdamTensor&, const AdamStep&);

void check_adam(Kernel kernel, Float p_type, Float g_type, Float state_type) {
  std::mt19937 random(1);
  AdamStep step = a_step();
  for (int64_t n : sizes) {
    auto squares = normal(n, 0.1, random);
    std::transform(
        squares.begin(), squares.end(), squares.begin(), [](float x) {
          return x * x;
        });
    Array p(p_type, normal(n, 1.0, random)), g(g_type, normal(n, 1.0, random));
    Array m(state_type, normal(n, 0.1, random)), v(state_type, squares);
    auto p0 = p.values(), g0 = g.values(), m0 = m.values(), v0 = v.values();
    kernel(
        {p.data(),
         g.data(),
         m.data(),
         v.data(),
         p.data(),
         m.data(),
         v.data(),
         n,
         p_type,
         g_type,
         state_type},
        step);
    auto p1 = p.values(), m1 = m.values(), v1 = v.values();
    for (int64_t i = 0; i < n; ++i) {
      double gi = 0.25 * g0[i];
      double mi = 0.9 * m0[i] + 0.1 * gi;
      double vi = 0.999 * v0[i] + 0.001 * gi * gi;
      double pi = p0[i] * (1.0 - 1e-3 * 0.01) -
                  step.c1 * mi / (std::sqrt(vi) * step.c2 + 1e-8);
      CHECK(near(m1[i], mi, state_type, std::abs(m0[i]) + std::abs(gi)));
      CHECK(near(v1[i], vi, state_type, vi));
      CHECK(near(p1[i], pi, p_type, std::abs(p0[i]) + 0.01));
    }
  }
}

const Float types[] = {Float::f32, Float::f16, Float::bf16};

}  // namespace

TEST(adam_matches_float64_for_every_mix_of_types) {
  for (Float p : types) {
    for (Float g : types) {
      for (Float state : types) {
        check_adam(adam_reference, p, g, state);
        each_target([&] { check_adam(adam, p, g, state); });
      }
    }
  }
}

TEST(adam_passes_nan_and_infinity_on) {
  each_target([&] {
    std::vector<float> p(20, 1.0f), g(20, 1.0f), m(20), v(20);
    g[3] = NAN;
    g[17] = INFINITY;
    adam(
        {p.data(),
         g.data(),
         m.data(),
         v.data(),
         p.data(),
         m.data(),
         v.data(),
         20,
         Float::f32,
         Float::f32,
         Float::f32},
        AdamStep{});
    for (int i = 0; i < 20; ++i) {
      CHECK(std::isnan(p[i]) == (i == 3 || i == 17));
    }
    CHECK(std::isnan(m[3]) && std::isinf(v[17]));
  });
}

namespace {

/// p after one stochastic step from p0 with a constant update.
std::vector<uint16_t> stochastic_step(
    Kernel kernel,
    Float type,
    float start,
    int64_t n,
    int64_t offset,
    uint64_t seed) {
  std::vector<uint16_t> p(static_cast<size_t>(n));
  std::vector<float> values(p.size(), start), g(p.size()), m(p.size(), 1.0f);
  std::vector<float> v(p.size(), 1.0f);
  host::from_float(values.data(), type, p.data(), n);
  AdamStep step;
  step.c1 = 3e-5f;
  step.seed = seed;
  step.options.stochastic = true;
  kernel(
      {p.data(),
       g.data(),
       m.data(),
       v.data(),
       p.data(),
       m.data(),
       v.data(),
       n,
       type,
       Float::f32,
       Float::f32,
       offset},
      step);
  return p;
}

}  // namespace

TEST(stochastic_rounding_is_unbiased_and_reproducible) {
  constexpr int64_t n = 40000;
  for (Float type : {Float::f16, Float::bf16}) {
    // Normal halves, and halves below 2^-14.
    for (float start : {0.75f, 2e-5f}) {
      auto want = stochastic_step(adam_reference, type, start, n, 0, 5);
      std::vector<float> values(n);
      host::to_float(want.data(), type, values.data(), n);
      double mean = 0.0;
      for (float value : values) {
        mean += value / n;
      }
      float rounded;
      host::to_float(want.data(), type, &rounded, 1);
      float stored;
      auto first = type == Float::f16 ? host::float_to_half(start)
                                      : host::float_to_bfloat(start);
      host::to_float(&first, type, &stored, 1);
      double exact = stored - 3e-5 * 0.9 / std::sqrt(0.999);
      double step =
          std::abs(exact) * (type == Float::f16 ? 0x1p-10 : 0x1p-7) + 0x1p-24;
      CHECK(std::abs(mean - exact) < 4.0 * step / std::sqrt(n));
      each_target([&] {
        CHECK(stochastic_step(adam, type, start, n, 0, 5) == want);
        CHECK(stochastic_step(adam, type, start, n, 0, 6) != want);
        auto tail = stochastic_step(adam, type, start, n - 777, 777, 5);
        CHECK(std::equal(tail.begin(), tail.end(), want.begin() + 777));
      });
    }
    // What cannot be rounded to a neighbour rounds as usual.
    each_target([&] {
      for (float value : {NAN, INFINITY, -INFINITY}) {
        auto p = stochastic_step(adam, type, value, 5, 0, 1);
        float back;
        host::to_float(&p[4], type, &back, 1);
        CHECK(std::isnan(value) ? std::isnan(back) : back == value);
      }
    });
  }
}

TEST(sum_of_squares_matches_float64) {
  std::mt19937 random(3);
  each_target([&] {
    for (Float type : types) {
      for (int64_t n : sizes) {
        // The last two leave the range of fp32 when squared.
        for (double scale : {1.0, 1e-3, 1e-25, 1e25}) {
          if (type == Float::f16 && scale != 1.0) {
            continue;
          }
          Array g(type, normal(n, scale, random));
          double want = 0.0;
          for (double value : g.values()) {
            want += value * value;
          }
          double got = sum_of_squares(g.data(), type, n);
          CHECK(std::abs(got - want) <= 1e-5 * want);
        }
      }
    }
    float bad[] = {1.0f, INFINITY, 2.0f};
    CHECK(std::isinf(sum_of_squares(bad, Float::f32, 3)));
    bad[1] = NAN;
    CHECK(std::isnan(sum_of_squares(bad, Float::f32, 3)));
  });
}

CHECK_MAIN()
