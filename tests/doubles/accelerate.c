/* Double of Accelerate: plain loops under the names that the project calls. */
#include <math.h>
#include <stdlib.h>

typedef long Stride;
typedef unsigned long Length;

/* The deprecated library's name is never the one to bind. */
void cblas_sgemm(void) {
  abort();
}

void new_cblas_sgemm(
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
    int ldc) __asm("cblas_sgemm$NEWLAPACK");

void new_cblas_sgemm(
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
    int ldc) {
  if (order != 101 || m < 0 || n < 0 || k < 0 ||
      lda < (trans_a == 112 ? m : k) || ldb < (trans_b == 112 ? k : n) ||
      ldc < n) {
    abort();
  }
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int l = 0; l < k; ++l) {
        sum += (trans_a == 112 ? a[l * (long)lda + i] : a[i * (long)lda + l]) *
               (trans_b == 112 ? b[j * (long)ldb + l] : b[l * (long)ldb + j]);
      }
      float* out = &c[i * (long)ldc + j];
      *out = alpha * sum + (beta == 0 ? 0 : beta * *out);
    }
  }
}

static int direction = 0;
static unsigned calls = 0;

void double_accelerate_rounds(int how) {
  direction = how;
}

/* The neighbour of an exact value that was asked for: an error of up to a unit
   in the last place. */
static float rounded(double exact, Length i) {
  float nearest = (float)exact;
  if (direction == 0 || !isfinite(nearest)) {
    return nearest;
  }
  int up = direction > 0;
  if (direction == 2) {
    up = ((i * 2654435761u + ++calls * 40503u) >> 13) & 1;
  }
  if (up) {
    return nearest < exact ? nextafterf(nearest, INFINITY) : nearest;
  }
  return nearest > exact ? nextafterf(nearest, -INFINITY) : nearest;
}

void vDSP_vsmul(
    const float* a, Stride ia, const float* b, float* c, Stride ic, Length n) {
  for (Length i = 0; i < n; ++i) {
    c[i * ic] = rounded((double)a[i * ia] * *b, i);
  }
}

void vDSP_vsq(const float* a, Stride ia, float* c, Stride ic, Length n) {
  for (Length i = 0; i < n; ++i) {
    c[i * ic] = rounded((double)a[i * ia] * a[i * ia], i);
  }
}

void vDSP_vsmsa(
    const float* a,
    Stride ia,
    const float* b,
    const float* c,
    float* d,
    Stride id,
    Length n) {
  for (Length i = 0; i < n; ++i) {
    d[i * id] = rounded((double)a[i * ia] * *b + *c, i);
  }
}

void vDSP_vsmsma(
    const float* a,
    Stride ia,
    const float* b,
    const float* c,
    Stride ic,
    const float* d,
    float* e,
    Stride ie,
    Length n) {
  for (Length i = 0; i < n; ++i) {
    e[i * ie] = rounded((double)a[i * ia] * *b + (double)c[i * ic] * *d, i);
  }
}

void vDSP_vdiv(
    const float* b,
    Stride ib,
    const float* a,
    Stride ia,
    float* c,
    Stride ic,
    Length n) {
  for (Length i = 0; i < n; ++i) {
    c[i * ic] = rounded((double)a[i * ia] / b[i * ib], i);
  }
}

void vvsqrtf(float* y, const float* x, const int* n) {
  for (int i = 0; i < *n; ++i) {
    y[i] = rounded(sqrt(x[i]), i);
  }
}
