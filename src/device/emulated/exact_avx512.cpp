// Fixed-point tiles with AVX-512, compiled for it function by function.
#include "device/emulated/exact_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mlx_ane::emulated {

#if defined(__x86_64__)

namespace {

#define MLX_ANE_AVX512 __attribute__((target("avx512f,avx512dq,avx512vl")))

/// Sixteen columns of b at one k, with what every row needs of them.
struct Columns {
  __m512 w, half;  // half: 0.5 with the sign of w
};

MLX_ANE_AVX512 inline Columns load_columns(const float* b) {
  auto sign = _mm512_castsi512_ps(_mm512_set1_epi32(INT32_MIN));
  auto w = _mm512_loadu_ps(b);
  return {w, _mm512_or_ps(_mm512_and_ps(w, sign), _mm512_set1_ps(0.5f))};
}

/// sum + the products of x that are kept, rounded half away from zero.
MLX_ANE_AVX512 inline __m512i accumulate(
    __m512i sum, __m512 x, __m512 x_sign, __m512 bound, Columns c) {
  auto half = _mm512_xor_ps(c.half, x_sign);
  auto product = _mm512_fmadd_ps(x, c.w, half);
  auto kept = _mm512_cmp_ps_mask(_mm512_abs_ps(c.w), bound, _CMP_GE_OQ);
  return _mm512_add_epi32(sum, _mm512_maskz_cvttps_epi32(kept, product));
}

MLX_ANE_AVX512 void fixed(const FixedTile& t, int32_t* sums) {
  auto sign = _mm512_castsi512_ps(_mm512_set1_epi32(INT32_MIN));
  __m512i total[tile_rows][2];
  for (int r = 0; r < tile_rows; ++r) {
    total[r][0] = total[r][1] =
        _mm512_set1_epi32(static_cast<int32_t>(t.start[r]));
  }
  for (int64_t i = 0; i < t.k; ++i) {
    auto left = load_columns(t.b + i * tile_cols);
    auto right = load_columns(t.b + i * tile_cols + 16);
#pragma GCC unroll 4
    for (int r = 0; r < tile_rows; ++r) {
      auto x = _mm512_set1_ps(t.a[r * t.k + i]);
      auto bound = _mm512_set1_ps(t.bound[r * t.k + i]);
      auto x_sign = _mm512_and_ps(x, sign);
      total[r][0] = accumulate(total[r][0], x, x_sign, bound, left);
      total[r][1] = accumulate(total[r][1], x, x_sign, bound, right);
    }
  }
  for (int r = 0; r < tile_rows; ++r) {
    _mm512_storeu_si512(sums + r * tile_cols, total[r][0]);
    _mm512_storeu_si512(sums + r * tile_cols + 16, total[r][1]);
  }
}

/// Eight columns: sums in 64 bits, those at or past 2^31 left alone.
MLX_ANE_AVX512 inline __m512i accumulate_live(
    __m512i sum, float x, float bound, __m256 w) {
  auto sign = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN));
  auto limit = _mm512_set1_epi64(int64_t{1} << 31);
  auto xs = _mm256_set1_ps(x);
  auto half = _mm256_or_ps(
      _mm256_and_ps(_mm256_xor_ps(xs, w), sign), _mm256_set1_ps(0.5f));
  auto product = _mm256_add_ps(_mm256_mul_ps(xs, w), half);
  auto kept = _mm256_cmp_ps_mask(
      _mm256_andnot_ps(sign, w), _mm256_set1_ps(bound), _CMP_GE_OQ);
  auto live = _mm512_cmplt_epi64_mask(_mm512_abs_epi64(sum), limit);
  return _mm512_mask_add_epi64(
      sum,
      static_cast<__mmask8>(kept & live),
      sum,
      _mm512_cvttps_epi64(product));
}

MLX_ANE_AVX512 void sticky(const FixedTile& t, int64_t* sums) {
  for (int r = 0; r < tile_rows; ++r) {
    __m512i total[tile_cols / 8];
    for (auto& value : total) {
      value = _mm512_set1_epi64(t.start[r]);
    }
    for (int64_t i = 0; i < t.k; ++i) {
      auto x = t.a[r * t.k + i], bound = t.bound[r * t.k + i];
      auto* b = t.b + i * tile_cols;
#pragma GCC unroll 4
      for (int j = 0; j < tile_cols / 8; ++j) {
        total[j] =
            accumulate_live(total[j], x, bound, _mm256_loadu_ps(b + 8 * j));
      }
    }
    for (int j = 0; j < tile_cols / 8; ++j) {
      _mm512_storeu_si512(sums + r * tile_cols + 8 * j, total[j]);
    }
  }
}

#undef MLX_ANE_AVX512

}  // namespace

const FixedKernels* avx512_kernels() {
  static constexpr FixedKernels kernels = {fixed, sticky};
  static const bool supported = __builtin_cpu_supports("avx512f") &&
                                __builtin_cpu_supports("avx512dq") &&
                                __builtin_cpu_supports("avx512vl");
  return supported ? &kernels : nullptr;
}

#else

const FixedKernels* avx512_kernels() {
  return nullptr;
}

#endif

}  // namespace mlx_ane::emulated
