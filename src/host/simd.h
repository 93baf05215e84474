// Registers of floats for one instruction set. Included once by each
// target_*.cpp, after its target pragma, so that every function below is built
// for that target.
#include <cstdint>
#include <cstring>

#include "host/half.h"

#ifndef MLX_ANE_LANES
#error "define MLX_ANE_LANES, the floats of one register, before simd.h"
#endif

// Registers are passed between functions of one file only.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

inline constexpr int lanes = MLX_ANE_LANES;

typedef float V __attribute__((vector_size(4 * MLX_ANE_LANES)));
typedef uint32_t U __attribute__((vector_size(4 * MLX_ANE_LANES)));
typedef int32_t I __attribute__((vector_size(4 * MLX_ANE_LANES)));
typedef uint16_t H __attribute__((vector_size(2 * MLX_ANE_LANES)));

template <class To, class From>
inline To cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

template <class R, class T>
inline R load(const T* p) {
  R x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

template <class R, class T>
inline void store(T* p, R x) {
  std::memcpy(p, &x, sizeof x);
}

/// The first n < lanes elements; the rest are zero.
template <class R, class T>
inline R load_part(const T* p, int64_t n) {
  R x{};
  std::memcpy(&x, p, static_cast<size_t>(n) * sizeof(T));
  return x;
}

template <class R, class T>
inline void store_part(T* p, R x, int64_t n) {
  std::memcpy(p, &x, static_cast<size_t>(n) * sizeof(T));
}

#if defined(MLX_ANE_AVX512)
// Masked, where the general form would call memcpy.
template <>
inline V load_part<V>(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
template <>
inline U load_part<U>(const uint32_t* p, int64_t n) {
  auto mask = static_cast<__mmask16>((1u << n) - 1);
  return cast<U>(_mm512_maskz_loadu_epi32(mask, p));
}
template <>
inline H load_part<H>(const uint16_t* p, int64_t n) {
  auto mask = static_cast<__mmask16>((1u << n) - 1);
  return cast<H>(_mm256_maskz_loadu_epi16(mask, p));
}
template <>
inline void store_part<V>(float* p, V x, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x);
}
template <>
inline void store_part<U>(uint32_t* p, U x, int64_t n) {
  auto mask = static_cast<__mmask16>((1u << n) - 1);
  _mm512_mask_storeu_epi32(p, mask, cast<__m512i>(x));
}
template <>
inline void store_part<H>(uint16_t* p, H x, int64_t n) {
  auto mask = static_cast<__mmask16>((1u << n) - 1);
  _mm256_mask_storeu_epi16(p, mask, cast<__m256i>(x));
}
#endif

/// n elements, up to a whole register.
template <class R, class T>
inline R load_count(const T* p, int64_t n) {
  return n == lanes ? load<R>(p) : load_part<R>(p, n);
}

template <class R, class T>
inline void store_count(T* p, R x, int64_t n) {
  if (n == lanes) {
    store(p, x);
  } else {
    store_part(p, x, n);
  }
}

inline V splat(float x) {
  return V{} + x;
}

inline U splat(uint32_t x) {
  return U{} + x;
}

inline V select(I mask, V yes, V no) {
  return mask ? yes : no;
}

inline V abs(V x) {
  return cast<V>(cast<U>(x) & 0x7fffffffu);
}

inline V max(V a, V b) {
  return select(a > b, a, b);
}

inline U max(U a, U b) {
#if defined(MLX_ANE_AVX512)
  return cast<U>(_mm512_max_epu32(cast<__m512i>(a), cast<__m512i>(b)));
#elif defined(MLX_ANE_AVX2)
  return cast<U>(_mm256_max_epu32(cast<__m256i>(a), cast<__m256i>(b)));
#else
  return a > b ? a : b;
#endif
}

inline float sum(V x) {
  float total = 0.0f;
  for (int i = 0; i < lanes; ++i) {
    total += x[i];
  }
  return total;
}

inline V sqrt(V x) {
#if defined(MLX_ANE_AVX512)
  return _mm512_sqrt_ps(x);
#elif defined(MLX_ANE_AVX2)
  return _mm256_sqrt_ps(x);
#elif defined(MLX_ANE_NEON)
  return cast<V>(vsqrtq_f32(cast<float32x4_t>(x)));
#else
  for (int i = 0; i < lanes; ++i) {
    x[i] = __builtin_sqrtf(x[i]);
  }
  return x;
#endif
}

inline V half_to_float(H h) {
#if defined(MLX_ANE_AVX512)
  return _mm512_cvtph_ps(cast<__m256i>(h));
#elif defined(MLX_ANE_AVX2)
  return _mm256_cvtph_ps(cast<__m128i>(h));
#elif defined(MLX_ANE_NEON)
  return cast<V>(vcvt_f32_f16(cast<float16x4_t>(h)));
#else
  V x;
  for (int i = 0; i < lanes; ++i) {
    x[i] = mlx_ane::host::half_to_float(h[i]);
  }
  return x;
#endif
}

inline H float_to_half(V x) {
#if defined(MLX_ANE_AVX512)
  return cast<H>(
      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(MLX_ANE_AVX2)
  return cast<H>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(MLX_ANE_NEON)
  return cast<H>(vcvt_f16_f32(cast<float32x4_t>(x)));
#else
  H h;
  for (int i = 0; i < lanes; ++i) {
    h[i] = mlx_ane::host::float_to_half(x[i]);
  }
  return h;
#endif
}

inline V bfloat_to_float(H b) {
  return cast<V>(__builtin_convertvector(b, U) << 16);
}

/// Low 16 bits of every lane.
inline H narrow(U x) {
#if defined(MLX_ANE_AVX512)
  return cast<H>(_mm512_cvtepi32_epi16(cast<__m512i>(x)));
#else
  return __builtin_convertvector(x, H);
#endif
}

inline H float_to_bfloat(V x) {
  U bits = cast<U>(x);
  U rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  I nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return narrow((nan ? bits | 0x400000u : rounded) >> 16);
}

/// e^x within 2 ulp; 0 below -87.3, NaN for NaN.
inline V exp(V x) {
  V clamped = select(x > 88.7f, splat(88.7f), x);
  clamped = select(clamped < -87.3f, splat(-87.3f), clamped);
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  V shifted = clamped * 1.44269504f + 12582912.0f;
  V n = shifted - 12582912.0f;
  V r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // Two factors, since 2^128 does not fit one.
  U half = (cast<U>(shifted) - 0x4b400000u);
  U low = cast<U>(cast<I>(half) >> 1);
  V scale = cast<V>((low + 127u) << 23);
  V rest = cast<V>((half - low + 127u) << 23);
  return select(x < -87.3f, splat(0.0f), p * scale * rest);
}

/// A pair of half registers to a line that no one reads soon; `p` is aligned to
/// the pair.
inline void stream(uint16_t* p, H a, H b) {
#if defined(MLX_ANE_AVX512)
  __m512i line = _mm512_inserti64x4(
      _mm512_castsi256_si512(cast<__m256i>(a)), cast<__m256i>(b), 1);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), line);
#elif defined(MLX_ANE_AVX2)
  _mm256_stream_si256(
      reinterpret_cast<__m256i*>(p),
      _mm256_set_m128i(cast<__m128i>(b), cast<__m128i>(a)));
#else
  store(p, a);
  store(p + lanes, b);
#endif
}

inline void stream(float* p, V x) {
#if defined(MLX_ANE_AVX512)
  _mm512_stream_ps(p, x);
#elif defined(MLX_ANE_AVX2)
  _mm256_stream_ps(p, x);
#else
  store(p, x);
#endif
}

/// Orders streamed stores before what follows.
inline void stream_end() {
#if defined(MLX_ANE_AVX512) || defined(MLX_ANE_AVX2)
  _mm_sfence();
#endif
}

/// Elements of type T from p to the first boundary of one register.
template <class T>
inline int64_t to_boundary(const T* p) {
  auto misaligned = reinterpret_cast<uintptr_t>(p) % (4 * lanes);
  return misaligned == 0
             ? 0
             : static_cast<int64_t>((4 * lanes - misaligned) / sizeof(T));
}

}  // namespace
