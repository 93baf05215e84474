// Own prototypes of the Accelerate functions that the project calls.
// No SDK header is needed; on Linux the doubles export the same names.
#pragma once

extern "C" {

using vDSP_Stride = long;
using vDSP_Length = unsigned long;

// The symbol that Accelerate's current headers select (ACCELERATE_NEW_LAPACK)
// and that MLX binds; the plain name is the deprecated library.
#if defined(__APPLE__)
#define MLX_ANE_NEWLAPACK(name) __asm("_" name "$NEWLAPACK")
#else
#define MLX_ANE_NEWLAPACK(name) __asm(name "$NEWLAPACK")
#endif
void cblas_sgemm(
    int order,
    int trans_a,
    int trans_b,
    int m,
    int n,
    int k,
    float alpha,
    const float* a,
    int lda,
    const float* b,
    int ldb,
    float beta,
    float* c,
    int ldc) MLX_ANE_NEWLAPACK("cblas_sgemm");

/// c = a * *b.
void vDSP_vsmul(
    const float* a,
    vDSP_Stride ia,
    const float* b,
    float* c,
    vDSP_Stride ic,
    vDSP_Length n);
/// c = a * a.
void vDSP_vsq(
    const float* a, vDSP_Stride ia, float* c, vDSP_Stride ic, vDSP_Length n);
/// d = a * *b + *c.
void vDSP_vsmsa(
    const float* a,
    vDSP_Stride ia,
    const float* b,
    const float* c,
    float* d,
    vDSP_Stride id,
    vDSP_Length n);
/// e = a * *b + c * *d.
void vDSP_vsmsma(
    const float* a,
    vDSP_Stride ia,
    const float* b,
    const float* c,
    vDSP_Stride ic,
    const float* d,
    float* e,
    vDSP_Stride ie,
    vDSP_Length n);
/// c = a / b; the divisor comes first.
void vDSP_vdiv(
    const float* b,
    vDSP_Stride ib,
    const float* a,
    vDSP_Stride ia,
    float* c,
    vDSP_Stride ic,
    vDSP_Length n);
/// y = sqrt(x).
void vvsqrtf(float* y, const float* x, const int* n);

}  // extern "C"
