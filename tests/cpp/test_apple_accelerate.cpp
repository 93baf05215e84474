// The Accelerate bodies over their doubles: sgemm by value, Adam against the
// loop.
#include "check.h"

#ifdef MLX_ANE_DOUBLES

#include <vector>

// Compiled here, so that it stands in for this machine's BLAS.
#include "blas/accelerate.cpp"
#include "blas/blas.h"
#include "doubles.h"
#include "kernels/adam_accelerate.h"

using namespace mlx_ane;

namespace {

float value(int64_t i) {
  return static_cast<float>((i * 7919) % 101 - 50) / 16;
}

std::vector<float> values(int64_t n, int64_t seed) {
  std::vector<float> out(n);
  for (int64_t i = 0; i < n; ++i) {
    out[i] = value(i + seed);
  }
  return out;
}

/// Largest difference of c = alpha op(a) op(b) + beta c over strided storage.
float sgemm_error(bool trans_a, bool trans_b, float beta) {
  constexpr int64_t m = 5, n = 7, k = 3, slack = 2;
  int64_t lda = (trans_a ? m : k) + slack;
  int64_t ldb = (trans_b ? k : n) + slack;
  int64_t ldc = n + slack;
  auto a = values((trans_a ? k : m) * lda, 1);
  auto b = values((trans_b ? n : k) * ldb, 2);
  auto c = values(m * ldc, 3);
  auto before = c;
  blas::sgemm(
      {.trans_a = trans_a,
       .trans_b = trans_b,
       .m = m,
       .n = n,
       .k = k,
       .alpha = 0.5f,
       .a = a.data(),
       .lda = lda,
       .b = b.data(),
       .ldb = ldb,
       .beta = beta,
       .c = c.data(),
       .ldc = ldc});
  float worst = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < ldc; ++j) {
      float expected = before[i * ldc + j];
      if (j < n) {
        float sum = 0;
        for (int64_t l = 0; l < k; ++l) {
          sum += (trans_a ? a[l * lda + i] : a[i * lda + l]) *
                 (trans_b ? b[j * ldb + l] : b[l * ldb + j]);
        }
        expected = 0.5f * sum + beta * expected;
      }
      worst = std::max(worst, std::abs(c[i * ldc + j] - expected));
    }
  }
  return worst;
}

/// Largest difference between both bodies over any output, in place.
float adam_difference(float keep_rest) {
  host::AdamConstants constants{
      .b1 = 0.9f,
      .b2 = 0.99f,
      .one_minus_b1 = 0.1f,
      .one_minus_b2 = 0.01f,
      .eps = 1e-3f,
      .keep = 0.75f,
      .keep_rest = keep_rest,
      .c1 = 0.25f,
      .c2 = 1.5f,
      .gradient_scale = 0.5f};
  float worst = 0;
  // Below, at and beyond whole tiles; v may not be negative.
  for (int64_t n : {0, 1, 1023, 1024, 1025, 5000}) {
    auto p = values(n, 1), g = values(n, 2), m = values(n, 3), v = values(n, 4);
    for (auto& x : v) {
      x *= x;
    }
    auto p2 = p, m2 = m, v2 = v;
    std::vector<float> q(n), m3(n), v3(n);
    host::loops().adam(
        p.data(),
        g.data(),
        m.data(),
        v.data(),
        q.data(),
        m3.data(),
        v3.data(),
        n,
        constants);
    // In place, as the optimizer donates.
    kernels::adam_accelerate(
        p2.data(),
        g.data(),
        m2.data(),
        v2.data(),
        p2.data(),
        m2.data(),
        v2.data(),
        n,
        constants);
    for (int64_t i = 0; i < n; ++i) {
      worst = std::max(
          {worst,
           std::abs(p2[i] - q[i]),
           std::abs(m2[i] - m3[i]),
           std::abs(v2[i] - v3[i])});
    }
  }
  return worst;
}

/// Units in the last place of x.
double units(double difference, double x) {
  int exponent;
  std::frexp(x, &exponent);
  return std::abs(difference) / std::ldexp(1.0, std::max(exponent, -125) - 24);
}

/// The largest error of m, v and p against float64 of the same constants, in
/// units of the largest term of each sum.
double units_off(float scale, float keep_rest) {
  host::AdamConstants k{
      .b1 = 0.9f,
      .b2 = 0.999f,
      .one_minus_b1 = 0.1f,
      .one_minus_b2 = 0.001f,
      .eps = 1e-8f,
      .keep = 0.99999f,
      .keep_rest = keep_rest,
      .c1 = 1e-3f,
      .c2 = 1.5f,
      .gradient_scale = scale};
  constexpr int64_t n = 5000;
  auto p = values(n, 1), g = values(n, 2), m = values(n, 3), v = values(n, 4);
  for (int64_t i = 0; i < n; ++i) {
    g[i] = g[i] == 0.0f ? 1.0f : g[i];
    int exponent = -static_cast<int>(i % 20);
    g[i] = std::ldexp(g[i], exponent);
    m[i] = std::ldexp(m[i], exponent);
    // A step of about 1e-3 is far below p: its own error hardly counts.
    p[i] = p[i] == 0.0f ? 1.0f : p[i];
    // The first step begins at zero; clipping adds a rounding, which counts
    // twice in a v that is the square alone.
    bool first = scale == 1.0f && i % 3 == 0;
    m[i] = first ? 0.0f : m[i] * 0.1f;
    v[i] = first ? 0.0f : 2 * g[i] * g[i];
  }
  std::vector<float> p2(n), m2(n), v2(n);
  kernels::adam_accelerate(
      p.data(),
      g.data(),
      m.data(),
      v.data(),
      p2.data(),
      m2.data(),
      v2.data(),
      n,
      k);
  double worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    double gradient = static_cast<double>(g[i]) * k.gradient_scale;
    double m_old = static_cast<double>(k.b1) * m[i];
    double m_new = m_old + k.one_minus_b1 * gradient;
    double v_new =
        static_cast<double>(k.b2) * v[i] + k.one_minus_b2 * gradient * gradient;
    double step = k.c1 * m_new / (std::sqrt(v_new) * k.c2 + k.eps);
    double keep = static_cast<double>(k.keep) + k.keep_rest;
    double p_new = p[i] * keep - step;
    double m_term = std::max(std::abs(m_old), std::abs(m_new));
    double p_term =
        std::max<double>({std::abs(p[i]), std::abs(p_new), std::abs(step)});
    worst = std::max(
        {worst,
         units(m2[i] - m_new, m_term),
         units(v2[i] - v_new, v_new),
         units(p2[i] - p_new, p_term)});
  }
  return worst;
}

}  // namespace

TEST(sgemm_has_the_operands_in_place) {
  for (bool trans_a : {false, true}) {
    for (bool trans_b : {false, true}) {
      CHECK(sgemm_error(trans_a, trans_b, 0.0f) <= 1e-5f);
      CHECK(sgemm_error(trans_a, trans_b, 2.0f) <= 1e-5f);
    }
  }
  CHECK(blas::name() == "Accelerate");
}

TEST(adam_equals_the_loop) {
  for (float keep_rest : {0.0f, 0.125f}) {
    CHECK(adam_difference(keep_rest) <= 2e-6f);
  }
}

TEST(adam_is_within_two_units_of_float64) {
  CHECK(kernels::has_accelerate());
  for (int rounding : {0, 1, -1, 2}) {
    double_accelerate_rounds(rounding);
    for (float scale : {1.0f, 0.375f}) {
      for (float keep_rest : {0.0f, 3e-9f}) {
        CHECK(units_off(scale, keep_rest) <= 2.0);
      }
    }
  }
  double_accelerate_rounds(0);
}

CHECK_MAIN()

#else

int main() {
  std::puts("built without the doubles");
}

#endif
