// Loops of conversion, scaling and transposition; included by loops_body.h.

namespace {

/// Calls body(i, count) for registers of 1 .. lanes elements, and head elements
/// first, so that the rest is aligned.
template <class Body>
inline void each_register(int64_t n, int64_t head, Body body) {
  int64_t i = head < n ? head : n;
  for (int64_t done = 0; done < i; done += lanes) {
    body(done, i - done < lanes ? i - done : int64_t{lanes});
  }
  for (; i + lanes <= n; i += lanes) {
    body(i, int64_t{lanes});
  }
  if (i < n) {
    body(i, n - i);
  }
}

template <class Convert>
inline void widen(
    const uint16_t* x, float* y, int64_t n, bool streaming, Convert convert) {
  int64_t head = streaming ? to_boundary(y) : 0;
  each_register(n, head, [&](int64_t i, int64_t count) {
    if (count < lanes) {
      store_part(y + i, convert(load_part<H>(x + i, count)), count);
    } else if (streaming && i >= head) {
      stream(y + i, convert(load<H>(x + i)));
    } else {
      store(y + i, convert(load<H>(x + i)));
    }
  });
  if (streaming) {
    stream_end();
  }
}

template <class Convert>
inline void shrink(
    const float* x, uint16_t* y, int64_t n, bool streaming, Convert convert) {
  int64_t i = 0;
  auto partial = [&](int64_t count) {
    if (count < lanes) {
      store_part(y + i, convert(load_part<V>(x + i, count)), count);
    } else {
      store(y + i, convert(load<V>(x + i)));
    }
    i += count;
  };
  int64_t head = streaming ? to_boundary(y) : 0;
  head = head < n ? head : n;
  while (i < head) {
    partial(head - i < lanes ? head - i : int64_t{lanes});
  }
  if (streaming) {
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
      H low = convert(load<V>(x + i));
      stream(y + i, low, convert(load<V>(x + i + lanes)));
    }
    stream_end();
  }
  while (i < n) {
    partial(n - i < lanes ? n - i : int64_t{lanes});
  }
}

void half_to_float_loop(const uint16_t* x, float* y, int64_t n, bool stream) {
  widen(x, y, n, stream, [](H h) { return half_to_float(h); });
}

void float_to_half_loop(const float* x, uint16_t* y, int64_t n, bool stream) {
  shrink(x, y, n, stream, [](V v) { return float_to_half(v); });
}

void bfloat_to_float_loop(const uint16_t* x, float* y, int64_t n) {
  widen(x, y, n, false, [](H b) { return bfloat_to_float(b); });
}

void float_to_bfloat_loop(const float* x, uint16_t* y, int64_t n) {
  shrink(x, y, n, false, [](V v) { return float_to_bfloat(v); });
}

/// 2^exponent, exact for -126 .. 127.
inline float power_of_two(int exponent) {
  auto bits = static_cast<uint32_t>(exponent + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

void scale_to_half_loop(
    const float* x, int exponent, uint16_t* y, int64_t n, bool stream) {
  // fp32 spans 2^-149 .. 2^128, so that more than 2^252 changes nothing; two
  // factors, since one does not hold 2^252.
  exponent = exponent < -252 ? -252 : exponent > 252 ? 252 : exponent;
  float first = power_of_two(exponent / 2);
  float second = power_of_two(exponent - exponent / 2);
  if (exponent >= -126 && exponent <= 126) {
    float factor = power_of_two(exponent);
    shrink(x, y, n, stream, [=](V v) { return float_to_half(v * factor); });
  } else {
    shrink(x, y, n, stream, [=](V v) {
      return float_to_half(v * first * second);
    });
  }
}

RowNorm row_norm_loop(const float* x, int64_t n) {
  U highest{};
  each_register(n, 0, [&](int64_t i, int64_t count) {
    U bits = (count == lanes ? load<U>(x + i) : load_part<U>(x + i, count)) &
             0x7fffffffu;
    highest = highest > bits ? highest : bits;
  });
  RowNorm norm{0, 0.0f};
  for (int i = 0; i < lanes; ++i) {
    norm.max_bits = highest[i] > norm.max_bits ? highest[i] : norm.max_bits;
  }
  if (norm.max_bits == 0 || norm.max_bits >= 0x7f800000u) {
    return norm;
  }
  // A subnormal maximum is scaled by 2^126 only: pack.cpp knows.
  int exponent = static_cast<int>(norm.max_bits >> 23) - 127;
  exponent = exponent < -126 ? -126 : exponent;
  float factor = power_of_two(exponent > 126 ? -126 : -exponent);
  V sums[4] = {};
  each_register(n, 0, [&](int64_t i, int64_t count) {
    V v = count == lanes ? load<V>(x + i) : load_part<V>(x + i, count);
    v *= factor;
    sums[(i / lanes) % 4] += v * v;
  });
  norm.sum = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  return norm;
}

#if defined(MLX_ANE_AVX512)

/// 16 columns of 32 rows: pairs of rows as 32-bit elements, then 16 x 16.
inline void transpose_tile(
    const uint16_t* src,
    int64_t src_ld,
    uint16_t* dst,
    int64_t dst_ld,
    bool streaming) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) {
    auto even = reinterpret_cast<const __m256i_u*>(src + 2 * i * src_ld);
    auto odd = reinterpret_cast<const __m256i_u*>(src + (2 * i + 1) * src_ld);
    a[i] = _mm512_or_si512(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(even)),
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(odd)), 16));
  }
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int k = 0; k < 4; ++k) {
    b[k] = _mm512_shuffle_i32x4(a[k], a[4 + k], 0x88);
    b[4 + k] = _mm512_shuffle_i32x4(a[k], a[4 + k], 0xdd);
    b[8 + k] = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0x88);
    b[12 + k] = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0xdd);
  }
  for (int k = 0; k < 4; ++k) {
    a[k] = _mm512_shuffle_i32x4(b[k], b[8 + k], 0x88);
    a[8 + k] = _mm512_shuffle_i32x4(b[k], b[8 + k], 0xdd);
    a[4 + k] = _mm512_shuffle_i32x4(b[4 + k], b[12 + k], 0x88);
    a[12 + k] = _mm512_shuffle_i32x4(b[4 + k], b[12 + k], 0xdd);
  }
  for (int c = 0; c < 16; ++c) {
    auto out = reinterpret_cast<__m512i*>(dst + c * dst_ld);
    if (streaming) {
      _mm512_stream_si512(out, a[c]);
    } else {
      _mm512_storeu_si512(out, a[c]);
    }
  }
}

inline constexpr int64_t tile_rows = 32, tile_cols = 16;

#else

typedef uint16_t H8 __attribute__((vector_size(16)));

/// 8 x 8 by three rounds of interleaving.
inline void transpose_tile(
    const uint16_t* src, int64_t src_ld, uint16_t* dst, int64_t dst_ld, bool) {
  H8 a[8], b[8];
  for (int i = 0; i < 8; ++i) {
    a[i] = load<H8>(src + i * src_ld);
  }
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 4; ++i) {
      b[2 * i] =
          __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      b[2 * i + 1] =
          __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; ++i) {
      a[i] = b[i];
    }
  }
  for (int c = 0; c < 8; ++c) {
    store(dst + c * dst_ld, a[c]);
  }
}

inline constexpr int64_t tile_rows = 8, tile_cols = 8;

#endif

void transpose_half_loop(
    const uint16_t* src,
    int64_t src_ld,
    int64_t rows,
    int64_t cols,
    uint16_t* dst,
    int64_t dst_ld,
    bool streaming) {
  int64_t full_rows = rows - rows % tile_rows;
  int64_t full_cols = cols - cols % tile_cols;
  for (int64_t c = 0; c < full_cols; c += tile_cols) {
    for (int64_t r = 0; r < full_rows; r += tile_rows) {
      transpose_tile(
          src + r * src_ld + c,
          src_ld,
          dst + c * dst_ld + r,
          dst_ld,
          streaming);
    }
  }
  if (streaming) {
    stream_end();
  }
  for (int64_t c = 0; c < cols; ++c) {
    int64_t first = c < full_cols ? full_rows : 0;
    for (int64_t r = first; r < rows; ++r) {
      dst[c * dst_ld + r] = src[r * src_ld + c];
    }
  }
}

HalfRowBits unpack_row_loop(
    const uint16_t* x,
    float row_factor,
    const float* col_factor,
    float* y,
    bool accumulate,
    uint16_t* col_bits,
    int64_t n,
    bool streaming) {
  H canaries{}, largest{};
  int64_t head = streaming ? to_boundary(y) : 0;
  each_register(n, head, [&](int64_t i, int64_t count) {
    bool whole = count == lanes;
    H h = whole ? load<H>(x + i) : load_part<H>(x + i, count);
    canaries |= cast<H>(h == mlx_ane::kernels::canary);
    H magnitude = h & uint16_t{0x7fff};
    largest = largest > magnitude ? largest : magnitude;
    if (col_bits != nullptr) {
      H seen =
          whole ? load<H>(col_bits + i) : load_part<H>(col_bits + i, count);
      seen |= magnitude;
      whole ? store(col_bits + i, seen) : store_part(col_bits + i, seen, count);
    }
    V factor = splat(row_factor);
    if (col_factor != nullptr) {
      factor *=
          whole ? load<V>(col_factor + i) : load_part<V>(col_factor + i, count);
    }
    V value = half_to_float(h) * factor;
    if (accumulate) {
      value += whole ? load<V>(y + i) : load_part<V>(y + i, count);
    }
    if (!whole) {
      store_part(y + i, value, count);
    } else if (streaming && i >= head) {
      stream(y + i, value);
    } else {
      store(y + i, value);
    }
  });
  if (streaming) {
    stream_end();
  }
  HalfRowBits bits;
  for (int i = 0; i < lanes; ++i) {
    bits.canary |= canaries[i] != 0;
    bits.nonfinite |= largest[i] >= 0x7c00;
    bits.nonzero |= largest[i] != 0;
  }
  return bits;
}

}  // namespace
