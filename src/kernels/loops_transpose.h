// Loops of transposition: pairs of halves as 32-bit elements; see loops_body.h.

namespace {

/// Elements (even[i], odd[i]) side by side.
inline U pair(H even, H odd) {
#if defined(MLX_ANE_AVX512)
  const __m512i order = _mm512_set_epi16(
      31,
      15,
      30,
      14,
      29,
      13,
      28,
      12,
      27,
      11,
      26,
      10,
      25,
      9,
      24,
      8,
      23,
      7,
      22,
      6,
      21,
      5,
      20,
      4,
      19,
      3,
      18,
      2,
      17,
      1,
      16,
      0);
  __m512i both = _mm512_inserti64x4(
      _mm512_castsi256_si512(cast<__m256i>(even)), cast<__m256i>(odd), 1);
  return cast<U>(_mm512_permutexvar_epi16(order, both));
#else
  return __builtin_convertvector(even, U) |
         (__builtin_convertvector(odd, U) << 16);
#endif
}

template <class Convert>
inline void pair_registers(
    const float* even,
    const float* odd,
    uint32_t* y,
    int64_t n,
    Convert convert) {
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    store(y + i, convert(load<V>(even + i), load<V>(odd + i)));
  }
  if (i < n) {
    V last_even = load_part<V>(even + i, n - i);
    V last_odd = load_part<V>(odd + i, n - i);
    store_part(y + i, convert(last_even, last_odd), n - i);
  }
}

void pair_rows_loop(
    const float* even,
    int even_exponent,
    const float* odd,
    int odd_exponent,
    uint32_t* y,
    int64_t n) {
  if (even_exponent == 0 && odd_exponent == 0) {
    pair_registers(even, odd, y, n, [](V a, V b) {
      return pair(float_to_half(a), float_to_half(b));
    });
    return;
  }
  Power a(even_exponent), b(odd_exponent);
  pair_registers(even, odd, y, n, [=](V x, V z) {
    return pair(
        float_to_half(x * a.first * a.second),
        float_to_half(z * b.first * b.second));
  });
}

void split_pairs_loop(
    const uint32_t* x, float* even, float* odd, int64_t n, bool streaming) {
  // Both rows are streamed only if both can start on a line.
  int64_t head = streaming ? to_boundary(even) : 0;
  streaming = streaming && to_boundary(odd) == head;
  auto split = [&](int64_t i, int64_t count, bool whole_lines) {
    U both = load_count<U>(x + i, count);
    V low = half_to_float(narrow(both & 0xffffu));
    V high = half_to_float(narrow(both >> 16));
    if (whole_lines) {
      stream(even + i, low);
      stream(odd + i, high);
    } else {
      store_count(even + i, low, count);
      store_count(odd + i, high, count);
    }
  };
  head = head < n ? head : n;
  int64_t i = head;
  if (head > 0) {
    split(0, head, false);
  }
  for (; i + lanes <= n; i += lanes) {
    split(i, lanes, streaming);
  }
  if (i < n) {
    split(i, n - i, false);
  }
}

#if defined(MLX_ANE_AVX512)

/// 16 x 16 elements of 32 bits in registers: a[i] becomes column i.
inline void transpose_registers(__m512i (&a)[16]) {
  __m512i b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    b[k] = _mm512_shuffle_i32x4(a[k], a[4 + k], 0x88);
    b[4 + k] = _mm512_shuffle_i32x4(a[k], a[4 + k], 0xdd);
    b[8 + k] = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0x88);
    b[12 + k] = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0xdd);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    a[k] = _mm512_shuffle_i32x4(b[k], b[8 + k], 0x88);
    a[8 + k] = _mm512_shuffle_i32x4(b[k], b[8 + k], 0xdd);
    a[4 + k] = _mm512_shuffle_i32x4(b[4 + k], b[12 + k], 0x88);
    a[12 + k] = _mm512_shuffle_i32x4(b[4 + k], b[12 + k], 0xdd);
  }
}

template <bool streaming>
inline void transpose_tile(
    const uint16_t* src, int64_t src_ld, uint16_t* dst, int64_t dst_ld) {
  __m512i a[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    a[i] = _mm512_loadu_si512(src + i * src_ld);
  }
  transpose_registers(a);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if constexpr (streaming) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(dst + i * dst_ld), a[i]);
    } else {
      _mm512_storeu_si512(dst + i * dst_ld, a[i]);
    }
  }
}

/// A tile at the edge, of which rows x cols exist.
inline void transpose_edge(
    const uint16_t* src,
    int64_t src_ld,
    uint16_t* dst,
    int64_t dst_ld,
    int64_t rows,
    int64_t cols) {
  __m512i a[16] = {};
  auto row_mask = static_cast<__mmask16>((1u << rows) - 1);
  auto col_mask = static_cast<__mmask16>((1u << cols) - 1);
  for (int i = 0; i < rows; ++i) {
    a[i] = _mm512_maskz_loadu_epi32(col_mask, src + i * src_ld);
  }
  transpose_registers(a);
  for (int i = 0; i < cols; ++i) {
    _mm512_mask_storeu_epi32(dst + i * dst_ld, row_mask, a[i]);
  }
}

inline constexpr int64_t tile_side = 16;

#else

typedef uint32_t U4 __attribute__((vector_size(16)));

/// 4 x 4 elements of 32 bits, of which rows x cols exist.
inline void transpose_edge(
    const uint16_t* src,
    int64_t src_ld,
    uint16_t* dst,
    int64_t dst_ld,
    int64_t rows,
    int64_t cols) {
  U4 a[4] = {};
  for (int i = 0; i < rows; ++i) {
    std::memcpy(&a[i], src + i * src_ld, 4 * static_cast<size_t>(cols));
  }
  U4 b[4] = {
      __builtin_shufflevector(a[0], a[2], 0, 4, 1, 5),
      __builtin_shufflevector(a[1], a[3], 0, 4, 1, 5),
      __builtin_shufflevector(a[0], a[2], 2, 6, 3, 7),
      __builtin_shufflevector(a[1], a[3], 2, 6, 3, 7)};
  U4 columns[4] = {
      __builtin_shufflevector(b[0], b[1], 0, 4, 1, 5),
      __builtin_shufflevector(b[0], b[1], 2, 6, 3, 7),
      __builtin_shufflevector(b[2], b[3], 0, 4, 1, 5),
      __builtin_shufflevector(b[2], b[3], 2, 6, 3, 7)};
  for (int i = 0; i < cols; ++i) {
    std::memcpy(dst + i * dst_ld, &columns[i], 4 * static_cast<size_t>(rows));
  }
}

/// With constant sizes, memcpy is one load or store.
template <bool streaming>
inline void transpose_tile(
    const uint16_t* src, int64_t src_ld, uint16_t* dst, int64_t dst_ld) {
  transpose_edge(src, src_ld, dst, dst_ld, 4, 4);
}

inline constexpr int64_t tile_side = 4;

#endif

template <bool streaming>
inline void transpose_tiles(
    const uint16_t* src,
    int64_t src_ld,
    int64_t rows,
    int64_t cols,
    uint16_t* dst,
    int64_t dst_ld,
    Prefetch next) {
  for (int64_t c = 0; c < cols; c += tile_side) {
    int64_t width = cols - c < tile_side ? cols - c : tile_side;
    for (int64_t r = 0; r < rows; r += tile_side) {
      int64_t height = rows - r < tile_side ? rows - r : tile_side;
      // What comes next is fetched meanwhile: reads and writes overlap.
      for (int64_t i = 0; i < next.bytes_per_tile; i += 64) {
        __builtin_prefetch(next.first + i, 0, 2);
      }
      next.first += next.bytes_per_tile;
      const uint16_t* from = src + r * src_ld + 2 * c;
      uint16_t* to = dst + c * dst_ld + 2 * r;
      if (width == tile_side && height == tile_side) {
        transpose_tile<streaming>(from, src_ld, to, dst_ld);
      } else {
        transpose_edge(from, src_ld, to, dst_ld, height, width);
      }
    }
  }
}

void prefetch_columns_loop(
    const uint16_t* src, int64_t src_ld, int64_t cols, int64_t bytes) {
  for (int64_t c = 0; c < cols; ++c) {
    auto column = reinterpret_cast<const char*>(src + c * src_ld);
    for (int64_t i = 0; i < bytes; i += 64) {
      __builtin_prefetch(column + i, 0, 2);
    }
  }
}

void transpose_pairs_loop(
    const uint16_t* src,
    int64_t src_ld,
    int64_t rows,
    int64_t cols,
    uint16_t* dst,
    int64_t dst_ld,
    bool streaming,
    const Prefetch& next) {
  if (streaming) {
    transpose_tiles<true>(src, src_ld, rows, cols, dst, dst_ld, next);
    stream_end();
  } else {
    transpose_tiles<false>(src, src_ld, rows, cols, dst, dst_ld, next);
  }
}

}  // namespace
