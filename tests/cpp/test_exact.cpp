// The exact accumulators against scalar oracles in 64-bit integers.
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

#include "check.h"
#include "device/emulated/exact.h"
#include "host/half.h"

using namespace mlx_ane;
using namespace mlx_ane::emulated;

namespace {

/// sign * mantissa * 2^(exponent - 10) of a half, exponent 31 like any other.
struct Parts {
  int64_t mantissa;
  int exponent;
};

Parts parts(uint16_t h) {
  int field = (h >> 10) & 31;
  int64_t mantissa = (h & 0x3ff) | (field ? 0x400 : 0);
  return {h & 0x8000 ? -mantissa : mantissa, field ? field - 15 : -14};
}

/// value * 2^shift, halves away from zero when shift is negative.
int64_t shift_away(int64_t value, int shift) {
  if (shift >= 0) {
    return value << shift;
  }
  auto magnitude = value < 0 ? -value : value;
  auto rounded =
      shift < -60 ? 0 : (magnitude + (int64_t{1} << (-shift - 1))) >> -shift;
  return value < 0 ? -rounded : rounded;
}

/// The M6 study's rules, one product after the other.
uint16_t oracle(
    const uint16_t* x,
    const uint16_t* w,
    int64_t k,
    int64_t stride_w,
    const uint16_t* bias) {
  constexpr int64_t limit = int64_t{1} << 31;
  int64_t sum = 0;
  if (bias) {
    auto b = parts(*bias);
    sum = shift_away(b.mantissa, b.exponent - 10 + 16);
  }
  bool over = sum >= limit || sum <= -limit;
  for (int64_t i = 0; i < k && !over; ++i) {
    auto a = parts(x[i]), b = parts(w[i * stride_w]);
    if (a.exponent + b.exponent <= -17) {
      continue;
    }
    sum +=
        shift_away(a.mantissa * b.mantissa, a.exponent + b.exponent - 20 + 16);
    over = sum >= limit || sum <= -limit;
  }
  if (over) {
    return sum < 0 ? 0xfc00 : 0x7c00;
  }
  auto magnitude = sum < 0 ? -sum : sum;
  for (uint16_t h = 0; h < 0x7c00; ++h) {
    // The first half whose upper midpoint lies above the sum: slow and plain.
    auto value = [](uint16_t v) {
      auto p = parts(v);
      return std::ldexp(static_cast<double>(p.mantissa), p.exponent - 10);
    };
    auto next = h == 0x7bff ? 65536.0 : value(h + 1);
    if (std::ldexp(static_cast<double>(magnitude), -16) <
        (value(h) + next) / 2) {
      return static_cast<uint16_t>(sum < 0 && h ? h | 0x8000 : h);
    }
  }
  return 0x7c00;
}

std::vector<uint16_t> halves(size_t n, float scale, std::mt19937& random) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<uint16_t> out(n);
  for (auto& h : out) {
    h = host::float_to_half(normal(random));
  }
  return out;
}

std::vector<float> floats(const std::vector<uint16_t>& from) {
  std::vector<float> out(from.size());
  host::to_float(
      from.data(), Float::f16, out.data(), static_cast<int64_t>(from.size()));
  return out;
}

uint16_t dot(
    const std::vector<float>& x,
    const std::vector<float>& w,
    Numerics numerics,
    const float* bias = nullptr) {
  float y;
  multiply_exactly(
      {1, 1, static_cast<int64_t>(x.size()), false, true},
      x.data(),
      w.data(),
      bias,
      &y,
      numerics);
  return host::float_to_half(y);
}

float dot_of(
    const std::vector<float>& x,
    const std::vector<float>& w,
    Numerics numerics) {
  return host::half_to_float(dot(x, w, numerics));
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> out = {"portable"};
  try {
    set_exact_kernel("avx512");
    out.push_back("avx512");
  } catch (const std::invalid_argument&) {
    std::puts("this CPU has no AVX-512: portable kernel only");
  }
  return out;
}

}  // namespace

TEST(fixed_point_equals_the_oracle) {
  std::mt19937 random(1);
  int64_t m = 7, n = 45, k = 83, overflows = 0;
  for (auto& name : kernel_names()) {
    set_exact_kernel(name);
    for (float scale : {1e-3f, 0.02f, 1.0f, 30.0f, 200.0f, 3000.0f}) {
      auto x = halves(m * k, scale, random), w = halves(k * n, scale, random);
      auto bias = halves(m, scale * 100, random);
      x[3] = 0x7c00;   // inf
      w[5] = 0x7e01;   // NaN
      x[9] = 0x8000;   // -0
      w[11] = 0x0001;  // the least denormal
      auto fx = floats(x), fw = floats(w), fb = floats(bias);
      std::vector<float> y(m * n);
      multiply_exactly(
          {m, n, k},
          fx.data(),
          fw.data(),
          fb.data(),
          y.data(),
          Numerics::fixed_point);
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          auto want = oracle(&x[i * k], &w[j], k, n, &bias[i]);
          overflows += (want & 0x7fff) == 0x7c00;
          CHECK(host::float_to_half(y[i * n + j]) == want);
        }
      }
    }
  }
  CHECK(overflows > 100);
}

TEST(fixed_point_of_transposed_operands) {
  std::mt19937 random(2);
  int64_t m = 5, n = 37, k = 20;
  auto x = floats(halves(m * k, 1, random)),
       w = floats(halves(k * n, 1, random));
  std::vector<float> xt(m * k), wt(k * n), y(m * n), yt(m * n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      xt[j * m + i] = x[i * k + j];
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      wt[j * k + i] = w[i * n + j];
    }
  }
  for (auto numerics :
       {Numerics::fixed_point,
        Numerics::half_products,
        Numerics::groups_of_four}) {
    multiply_exactly(
        {m, n, k}, x.data(), w.data(), nullptr, y.data(), numerics);
    multiply_exactly(
        {m, n, k, true, true},
        xt.data(),
        wt.data(),
        nullptr,
        yt.data(),
        numerics);
    CHECK(y == yt);
  }
}

TEST(figures_of_the_m6_study) {
  auto q = Numerics::fixed_point;
  // |partial| >= 32768 is sticky, whatever comes after.
  CHECK(std::isinf(dot_of({256, 256}, {128, -128}, q)));
  CHECK(dot_of({255, 255}, {128, -128}, q) == 0);
  CHECK(dot_of({-256, 256}, {128, 128}, q) == -INFINITY);
  // Exponents that add up to -17 drop the product; -16 keeps it.
  CHECK(dot_of({0x1.8p-8f}, {0x1.8p-9f}, q) == 0);
  CHECK(dot_of({0x1.8p-8f}, {0x1.8p-8f}, q) == 0x1p-15f);  // 2.25 units: 2
  // Halves of a unit round away from zero.
  CHECK(dot_of({0x1.4p-8f}, {0x1.4p-8f}, q) == 0x1p-15f);  // 1.5625 units: 2
  CHECK(dot_of({0x1.8p-8f}, {-0x1p-8f}, q) == -0x1p-15f);  // -1.5 units: -2
  // A denormal counts as 2^-14 in the sum of exponents.
  CHECK(
      dot_of({0x1p-15f}, {0x1p-2f}, q) == 0x1p-16f);  // -14 - 2: kept, 0.5 unit
  CHECK(dot_of({0x1p-15f}, {0x1p-3f}, q) == 0);
  // The result rounds half away from zero: 2049 -> 2050.
  CHECK(dot_of({2048, 1}, {1, 1}, q) == 2050);
  CHECK(dot_of({-2048, -1}, {1, 1}, q) == -2050);
  // -0 becomes +0.
  CHECK(dot({-0.0f}, {1}, q) == 0);
  // The bias starts the accumulator.
  float bias = 32752;
  CHECK(dot({16, -16}, {1, 1}, q, &bias) == 0x7c00);
  CHECK(dot({-16, 16}, {1, 1}, q, &bias) == host::float_to_half(32752));
  // No fp16 partial sums: 4096 ones are exact.
  std::vector<float> ones(4096, 1.0f);
  ones[0] = 2049 - 4095;
  CHECK(dot_of(ones, std::vector<float>(4096, 1.0f), q) == 2049 + 1);
}

TEST(figures_of_other_chips) {
  // M2 Pro and M5: inf beyond 32752 (ANEForge).
  CHECK(dot_of({32752, 9}, {1, 1}, Numerics::fixed_point) == 32768);
  CHECK(std::isinf(dot_of({32752, 9}, {1, 1}, Numerics::fixed_point_32752)));
  CHECK(dot_of({32752, 7}, {1, 1}, Numerics::fixed_point_32752) == 32752);
  // inf decodes as 2^16, NaN as more: large or inf, never NaN.
  for (auto numerics : {Numerics::fixed_point, Numerics::half_products}) {
    CHECK(dot_of({INFINITY}, {0.25f}, numerics) == 16384);
    CHECK(!std::isnan(dot_of({NAN}, {0.125f}, numerics)));
    CHECK(dot_of({NAN}, {0.125f}, numerics) >= 8192);
  }
  // M3 Ultra: 0 once a partial sum reaches 2^15, products under 6.1e-5 flushed
  // and each rounded to fp16, wide sums, 2049 -> 2050 (MiniMax-H3-Swift).
  auto h3 = Numerics::half_products;
  CHECK(dot_of({256, 1}, {128, 1}, h3) == 0);
  CHECK(dot_of({0x1p-7f}, {0x1p-7f}, h3) == 0x1p-14f);
  CHECK(dot_of({0x1p-7f}, {0x1.ffcp-8f}, h3) == 0);
  CHECK(dot_of({2048, 1}, {1, 1}, h3) == 2050);
  float third = 0x1.554p-2f;  // 1365 * 2^-12; its square needs 21 bits
  CHECK(
      dot_of({third}, {third}, h3) ==
      host::half_to_float(host::float_to_half(third * third)));
  // M1: groups of four in fp16, then fp32 (Bryngelson).
  auto m1 = Numerics::groups_of_four;
  CHECK(dot_of({2048, 1, 0, 0}, {1, 1, 0, 0}, m1) == 2048);
  CHECK(dot_of({2048, 0, 0, 0, 1, 1}, {1, 0, 0, 0, 1, 1}, m1) == 2050);
}

CHECK_MAIN()
