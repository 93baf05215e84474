// Loops of the optimizer; included by loops_body.h.
#include <initializer_list>

namespace {

void adam_loop(
    const float* p,
    const float* g,
    const float* m,
    const float* v,
    float* p_out,
    float* m_out,
    float* v_out,
    int64_t n,
    const AdamConstants& k) {
  auto step = [&](V pv, V gv, V mv, V vv, V& new_m, V& new_v) {
    gv *= k.gradient_scale;
    new_m = k.b1 * mv + k.one_minus_b1 * gv;
    new_v = k.b2 * vv + k.one_minus_b2 * gv * gv;
    // No product with a rest of zero: an infinite p would make it NaN.
    V rest = k.keep_rest != 0.0f ? k.keep_rest * pv : V{};
    return pv * k.keep + (rest - k.c1 * new_m / (sqrt(new_v) * k.c2 + k.eps));
  };
  V new_m, new_v;
  // MLX's buffers begin 8 bytes past a line: from the next one on, whole lines.
  // Prefetching goes on where the hardware's stops: at the end of a page.
  constexpr int64_t ahead = 64;
  each_register(n, to_boundary(p_out), [&](int64_t i, int64_t count) {
    for (auto* next : {p, g, m, v}) {
      __builtin_prefetch(next + i + ahead);
    }
    V new_p = step(
        load_count<V>(p + i, count),
        load_count<V>(g + i, count),
        load_count<V>(m + i, count),
        load_count<V>(v + i, count),
        new_m,
        new_v);
    store_count(p_out + i, new_p, count);
    store_count(m_out + i, new_m, count);
    store_count(v_out + i, new_v, count);
  });
}

/// random_bits of rounding.h for the elements index .. index + lanes.
inline U random_lanes(uint32_t key, uint32_t index) {
  U x;
  for (uint32_t i = 0; i < lanes; ++i) {
    x[i] = index + i;
  }
  x = x * 0x9e3779b9u + key;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

template <class Round>
inline void stochastic(
    const float* x,
    uint16_t* y,
    int64_t n,
    uint32_t key,
    uint32_t index,
    Round round) {
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    U random = random_lanes(key, index + static_cast<uint32_t>(i));
    store(y + i, round(load<V>(x + i), random));
  }
  if (int64_t rest = n - i; rest > 0) {
    U random = random_lanes(key, index + static_cast<uint32_t>(i));
    store_part(y + i, round(load_part<V>(x + i, rest), random), rest);
  }
}

void stochastic_bfloat_loop(
    const float* x, uint16_t* y, int64_t n, uint32_t key, uint32_t index) {
  stochastic(x, y, n, key, index, [](V value, U random) {
    U bits = cast<U>(value);
    H usual = float_to_bfloat(value);
    H rounded = narrow((bits + (random >> 16)) >> 16);
    I keep = (bits & 0x7fffffffu) >= 0x7f7f0000u;
    H mask = narrow(cast<U>(keep));
    return (usual & mask) | (rounded & ~mask);
  });
}

void stochastic_half_loop(
    const float* x, uint16_t* y, int64_t n, uint32_t key, uint32_t index) {
  stochastic(x, y, n, key, index, [](V value, U random) {
    U bits = cast<U>(value);
    U magnitude = bits & 0x7fffffffu;
    U dither = random >> 19;
    I tiny = magnitude < 0x38800000u;
    // Halves below 2^-14 are multiples of 2^-24; 13 more bits decide.
    V fixed = select(tiny, cast<V>(magnitude) * 0x1p37f, V{});
    U small = (cast<U>(__builtin_convertvector(fixed, I)) + dither) >> 13;
    U normal = (magnitude - (112u << 23) + dither) >> 13;
    H rounded = narrow((tiny ? small : normal) | ((bits >> 16) & 0x8000u));
    H usual = float_to_half(value);
    H mask = narrow(cast<U>(magnitude >= 0x477fe000u));
    return (usual & mask) | (rounded & ~mask);
  });
}

double sum_of_squares_loop(const float* x, int64_t n) {
  // fp32 partial sums over blocks, so that double costs nothing.
  constexpr int64_t block = 64 * lanes;
  double total = 0.0;
  int64_t i = 0;
  while (i < n) {
    int64_t start = i;
    int64_t end = n - i < block ? n : i + block;
    V a{}, b{}, c{}, d{};
    for (; i + 4 * lanes <= end; i += 4 * lanes) {
      V xa = load<V>(x + i), xb = load<V>(x + i + lanes);
      V xc = load<V>(x + i + 2 * lanes), xd = load<V>(x + i + 3 * lanes);
      a += xa * xa;
      b += xb * xb;
      c += xc * xc;
      d += xd * xd;
    }
    for (; i < end; i += lanes) {
      int64_t count = end - i < lanes ? end - i : int64_t{lanes};
      V xa = load_part<V>(x + i, count);
      a += xa * xa;
    }
    i = end;
    float block_sum = sum((a + b) + (c + d));
    if (block_sum > 1e-20f && block_sum < 1e38f) {
      total += block_sum;
      continue;
    }
    // Squares left the range of fp32.
    for (int64_t j = start; j < end; ++j) {
      total += static_cast<double>(x[j]) * x[j];
    }
  }
  return total;
}

}  // namespace
