// Adam on Accelerate's vector functions, and the choice between it and the
// loop.
#include "kernels/adam_accelerate.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <vector>

#ifdef MLX_ANE_APPLE
#include "blas/accelerate_abi.h"
#endif

namespace mlx_ane::kernels {

namespace {

std::atomic<bool> chose_accelerate{false};

}  // namespace

#ifdef MLX_ANE_APPLE

namespace {

/// Seven arrays of a tile are 28 KiB: within every core's L1.
constexpr int64_t tile = 1024;

void adam_tile(
    const float* p,
    const float* g,
    const float* m,
    const float* v,
    float* p_out,
    float* m_out,
    float* v_out,
    int64_t n,
    const host::AdamConstants& k) {
  alignas(64) float scaled[tile], work[tile];
  auto length = static_cast<vDSP_Length>(n);
  auto count = static_cast<int>(n);
  float minus_c1 = -k.c1;
  vDSP_vsmul(g, 1, &k.gradient_scale, scaled, 1, length);
  vDSP_vsmsma(m, 1, &k.b1, scaled, 1, &k.one_minus_b1, m_out, 1, length);
  vDSP_vsq(scaled, 1, work, 1, length);
  vDSP_vsmsma(v, 1, &k.b2, work, 1, &k.one_minus_b2, v_out, 1, length);
  vvsqrtf(work, v_out, &count);
  vDSP_vsmsa(work, 1, &k.c2, &k.eps, work, 1, length);
  vDSP_vdiv(work, 1, m_out, 1, scaled, 1, length);
  if (k.keep_rest == 0.0f) {
    vDSP_vsmsma(p, 1, &k.keep, scaled, 1, &minus_c1, p_out, 1, length);
    return;
  }
  // The small terms first: keep is rounded, keep_rest is what that lost.
  constexpr float one = 1;
  vDSP_vsmsma(p, 1, &k.keep_rest, scaled, 1, &minus_c1, scaled, 1, length);
  vDSP_vsmsma(p, 1, &k.keep, scaled, 1, &one, p_out, 1, length);
}

/// Seconds of the best of three steps over 64 Ki elements.
double time_of(AdamLoop adam) {
  constexpr int64_t n = 1 << 16;
  std::vector<float> p(n, 1), g(n, 0.5f), m(n, 0.1f), v(n, 0.01f);
  host::AdamConstants constants{
      .b1 = 0.9f,
      .b2 = 0.999f,
      .one_minus_b1 = 0.1f,
      .one_minus_b2 = 0.001f,
      .eps = 1e-8f,
      .keep = 1,
      .keep_rest = 0,
      .c1 = 1e-3f,
      .c2 = 1,
      .gradient_scale = 1};
  auto best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 4; ++i) {
    auto start = std::chrono::steady_clock::now();
    adam(
        p.data(),
        g.data(),
        m.data(),
        v.data(),
        p.data(),
        m.data(),
        v.data(),
        n,
        constants);
    std::chrono::duration<double> taken =
        std::chrono::steady_clock::now() - start;
    // The first one faults the pages in.
    best = i == 0 ? best : std::min(best, taken.count());
  }
  return best;
}

}  // namespace

void adam_accelerate(
    const float* p,
    const float* g,
    const float* m,
    const float* v,
    float* p_out,
    float* m_out,
    float* v_out,
    int64_t n,
    const host::AdamConstants& constants) {
  for (int64_t i = 0; i < n; i += tile) {
    adam_tile(
        p + i,
        g + i,
        m + i,
        v + i,
        p_out + i,
        m_out + i,
        v_out + i,
        std::min(tile, n - i),
        constants);
  }
}

AdamLoop fastest_adam(AdamLoop portable) {
  static const bool accelerate = [&] {
    chose_accelerate = time_of(adam_accelerate) < time_of(portable);
    return chose_accelerate.load();
  }();
  return accelerate ? adam_accelerate : portable;
}

#else

AdamLoop fastest_adam(AdamLoop portable) {
  return portable;
}

#endif

std::string adam_implementation() {
  return chose_accelerate ? "vDSP" : "loop";
}

}  // namespace mlx_ane::kernels
