// Own loops for the functions of blas/accelerate_abi.h that Adam calls, where
// there is no Accelerate. All strides are 1.
#pragma once

#include <cmath>

namespace mlx_ane::kernels {

using vDSP_Length = unsigned long;

inline void vDSP_vsmul(
    const float* a, long, const float* b, float* c, long, vDSP_Length n) {
  for (vDSP_Length i = 0; i < n; ++i) {
    c[i] = a[i] * *b;
  }
}

inline void vDSP_vsq(const float* a, long, float* c, long, vDSP_Length n) {
  for (vDSP_Length i = 0; i < n; ++i) {
    c[i] = a[i] * a[i];
  }
}

inline void vDSP_vsmsa(
    const float* a,
    long,
    const float* b,
    const float* c,
    float* d,
    long,
    vDSP_Length n) {
  for (vDSP_Length i = 0; i < n; ++i) {
    d[i] = a[i] * *b + *c;
  }
}

inline void vDSP_vsmsma(
    const float* a,
    long,
    const float* b,
    const float* c,
    long,
    const float* d,
    float* e,
    long,
    vDSP_Length n) {
  for (vDSP_Length i = 0; i < n; ++i) {
    e[i] = a[i] * *b + c[i] * *d;
  }
}

inline void vDSP_vdiv(
    const float* b, long, const float* a, long, float* c, long, vDSP_Length n) {
  for (vDSP_Length i = 0; i < n; ++i) {
    c[i] = a[i] / b[i];
  }
}

inline void vvsqrtf(float* y, const float* x, const int* n) {
  for (int i = 0; i < *n; ++i) {
    y[i] = std::sqrt(x[i]);
  }
}

}  // namespace mlx_ane::kernels
