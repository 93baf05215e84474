// Adam on Accelerate's vector functions; elsewhere, own loops stand in for
// them.
#include "kernels/adam_accelerate.h"

#include <algorithm>

#ifdef MLX_ANE_APPLE
#include "blas/accelerate_abi.h"
#else
#include "kernels/accelerate_stand_in.h"
#endif

namespace mlx_ane::kernels {

namespace {

/// Eight arrays of a tile are 32 KiB: within every Apple core's L1.
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
  alignas(64) float work[tile], step[tile];
  auto length = static_cast<vDSP_Length>(n);
  auto count = static_cast<int>(n);
  // Each function rounds: without clipping, a gradient is read as it is.
  if (k.gradient_scale != 1.0f) {
    vDSP_vsmul(g, 1, &k.gradient_scale, step, 1, length);
    g = step;
  }
  vDSP_vsmsma(m, 1, &k.b1, g, 1, &k.one_minus_b1, m_out, 1, length);
  vDSP_vsq(g, 1, work, 1, length);
  vDSP_vsmsma(v, 1, &k.b2, work, 1, &k.one_minus_b2, v_out, 1, length);
  vvsqrtf(work, v_out, &count);
  vDSP_vsmsa(work, 1, &k.c2, &k.eps, work, 1, length);
  vDSP_vdiv(work, 1, m_out, 1, step, 1, length);
  float minus_c1 = -k.c1;
  if (k.keep_rest == 0.0f) {
    vDSP_vsmsma(p, 1, &k.keep, step, 1, &minus_c1, p_out, 1, length);
    return;
  }
  // The small terms first: keep is rounded, keep_rest is what that lost.
  constexpr float one = 1;
  vDSP_vsmsma(p, 1, &k.keep_rest, step, 1, &minus_c1, step, 1, length);
  vDSP_vsmsma(p, 1, &k.keep, step, 1, &one, p_out, 1, length);
}

}  // namespace

bool has_accelerate() {
#ifdef MLX_ANE_APPLE
  return true;
#else
  return false;
#endif
}

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

}  // namespace mlx_ane::kernels
