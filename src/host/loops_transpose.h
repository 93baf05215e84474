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

/// y[i] = convert(even[i], odd[i]); without an odd row, its values are zero.
template <class Convert>
inline void pair_registers(
    const float* even,
    const float* odd,
    uint32_t* y,
    int64_t n,
    Convert convert) {
  each_register(n, 0, [&](int64_t i, int64_t count) {
    V a = load_count<V>(even + i, count);
    V b = odd == nullptr ? V{} : load_count<V>(odd + i, count);
    store_count(y + i, convert(a, b), count);
  });
}

void pair_rows_loop(
    const float* x,
    int64_t ld,
    int64_t rows,
    const int16_t* exponent,
    uint32_t* y,
    int64_t y_ld,
    int64_t n) {
  for (int64_t r = 0; r < rows; r += 2, y += y_ld) {
    bool both = r + 1 < rows;
    const float* even = x + r * ld;
    const float* odd = both ? even + ld : nullptr;
    int even_exponent = exponent == nullptr ? 0 : exponent[r];
    int odd_exponent = exponent == nullptr || !both ? 0 : exponent[r + 1];
    if (even_exponent == 0 && odd_exponent == 0) {
      pair_registers(even, odd, y, n, [](V a, V b) {
        return pair(float_to_half(a), float_to_half(b));
      });
      continue;
    }
    Power a(even_exponent), b(odd_exponent);
    pair_registers(even, odd, y, n, [=](V v, V w) {
      return pair(
          float_to_half(v * a.first * a.second),
          float_to_half(w * b.first * b.second));
    });
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

/// fp32 rows 2 i and 2 i + 1 from the pairs of row i, columns 0 .. count.
template <bool streaming>
inline void split_pair(U both, float* even, float* odd, int64_t count = lanes) {
#if defined(MLX_ANE_AVX512)
  const __m512i order = _mm512_set_epi16(
      31,
      29,
      27,
      25,
      23,
      21,
      19,
      17,
      15,
      13,
      11,
      9,
      7,
      5,
      3,
      1,
      30,
      28,
      26,
      24,
      22,
      20,
      18,
      16,
      14,
      12,
      10,
      8,
      6,
      4,
      2,
      0);
  __m512i sorted = _mm512_permutexvar_epi16(order, cast<__m512i>(both));
  V low = _mm512_cvtph_ps(_mm512_castsi512_si256(sorted));
  V high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(sorted, 1));
#else
  V low = half_to_float(narrow(both & 0xffffu));
  V high = half_to_float(narrow(both >> 16));
#endif
  if constexpr (streaming) {
    stream(even, low);
    stream(odd, high);
  } else {
    store_count(even, low, count);
    store_count(odd, high, count);
  }
}

/// Any part of a tile: `pairs` pairs of rows, `cols` columns.
template <bool streaming>
inline void unpack_edge(
    const uint16_t* src,
    int64_t ld,
    int64_t pairs,
    int64_t cols,
    float* y,
    int64_t y_ld) {
  uint32_t panel[tile_side][lanes] = {};
  for (int64_t c = 0; c < cols; c += tile_side) {
    transpose_edge(
        src + c * ld,
        ld,
        reinterpret_cast<uint16_t*>(panel[0] + c),
        2 * lanes,
        cols - c < tile_side ? cols - c : tile_side,
        pairs);
  }
  for (int64_t i = 0; i < pairs; ++i) {
    float* even = y + 2 * i * y_ld;
    split_pair<streaming>(load<U>(panel[i]), even, even + y_ld, cols);
  }
}

/// A whole tile, streamed.
inline void unpack_tile(
    const uint16_t* src, int64_t ld, float* y, int64_t y_ld) {
#if defined(MLX_ANE_AVX512)
  __m512i a[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    a[i] = _mm512_loadu_si512(src + i * ld);
  }
  transpose_registers(a);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    float* even = y + 2 * i * y_ld;
    split_pair<true>(cast<U>(a[i]), even, even + y_ld);
  }
#else
  unpack_edge<true>(src, ld, tile_side, lanes, y, y_ld);
#endif
}

void unpack_streamed(
    const uint16_t* src,
    int64_t ld,
    int64_t pairs,
    int64_t cols,
    float* y,
    int64_t y_ld) {
  bool whole_lines = y_ld % lanes == 0;
  int64_t head = whole_lines ? to_boundary(y) : 0;
  for (int64_t c = 0, width; c < cols; c += width) {
    width = c < head ? head - c : int64_t{lanes};
    width = cols - c < width ? cols - c : width;
    for (int64_t i = 0; i < pairs; i += tile_side) {
      // Two registers ahead: the hardware does not see columns coming.
      const uint16_t* from = src + c * ld + 2 * i;
      for (int64_t k = c + width + lanes; k < c + width + 2 * lanes; ++k) {
        __builtin_prefetch(from + (k - c) * ld);
      }
      int64_t height = pairs - i < tile_side ? pairs - i : tile_side;
      float* to = y + 2 * i * y_ld + c;
      if (whole_lines && width == lanes && height == tile_side) {
        unpack_tile(from, ld, to, y_ld);
      } else {
        unpack_edge<false>(from, ld, height, width, to, y_ld);
      }
    }
  }
  stream_end();
}

void unpack_columns_loop(
    const uint16_t* src,
    int64_t ld,
    int64_t rows,
    int64_t cols,
    float* y,
    int64_t y_ld,
    uint32_t* panel) {
  int64_t pairs = rows / 2;
  if (panel == nullptr) {
    unpack_streamed(src, ld, pairs, cols, y, y_ld);
    return;
  }
  // Shifted, so that loads from the panel are aligned where stores to y are. An
  // odd number of lines apart, so that a column does not fall on one set.
  int64_t head = y_ld % lanes == 0 ? to_boundary(y) : 0;
  uint32_t* first = panel + (head == 0 ? 0 : lanes - head);
  int64_t panel_ld = (cols + 32) | 16;
  auto halves = reinterpret_cast<uint16_t*>(first);
  transpose_tiles<false>(src, ld, cols, pairs, halves, 2 * panel_ld, {});
  for (int64_t i = 0; i < pairs; ++i) {
    const uint32_t* both = first + i * panel_ld;
    float* even = y + 2 * i * y_ld;
    each_register(cols, head, [&](int64_t c, int64_t count) {
      split_pair<false>(
          load_count<U>(both + c, count), even + c, even + y_ld + c, count);
    });
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
