// Loops of conversion, scaling and unpacking; included by loops_body.h.

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

/// Calls body(chain, i, count) for registers in four chains, so that reductions
/// do not wait for their own results.
template <class Body>
inline void each_chain(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    body(0, i, int64_t{lanes});
    body(1, i + lanes, int64_t{lanes});
    body(2, i + 2 * lanes, int64_t{lanes});
    body(3, i + 3 * lanes, int64_t{lanes});
  }
  for (; i < n; i += lanes) {
    body(0, i, n - i < lanes ? n - i : int64_t{lanes});
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

void round_to_half_loop(float* x, int64_t n) {
  each_register(n, 0, [&](int64_t i, int64_t count) {
    H half = float_to_half(load_count<V>(x + i, count));
    store_count(x + i, half_to_float(half), count);
  });
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

/// Factors whose product is 2^exponent. fp32 spans 2^-149 .. 2^128, so that
/// more than 2^252 changes nothing.
struct Power {
  explicit Power(int exponent) {
    exponent = exponent < -252 ? -252 : exponent > 252 ? 252 : exponent;
    first = power_of_two(exponent / 2);
    second = power_of_two(exponent - exponent / 2);
  }
  float first, second;
};

void scale_to_half_loop(
    const float* x, int exponent, uint16_t* y, int64_t n, bool stream) {
  Power power(exponent);
  shrink(x, y, n, stream, [=](V v) {
    return float_to_half(v * power.first * power.second);
  });
}

RowNorm row_norm_loop(const float* x, int64_t n) {
  U highest[4] = {};
  each_chain(n, [&](int chain, int64_t i, int64_t count) {
    U bits = cast<U>(load_count<V>(x + i, count)) & 0x7fffffffu;
    highest[chain] = max(highest[chain], bits);
  });
  U top = max(max(highest[0], highest[1]), max(highest[2], highest[3]));
  RowNorm norm{0, 0.0f};
  for (int i = 0; i < lanes; ++i) {
    norm.max_bits = top[i] > norm.max_bits ? top[i] : norm.max_bits;
  }
  int exponent = static_cast<int>(norm.max_bits >> 23) - 127;
  if (exponent < -126 || exponent > 126) {
    return norm;
  }
  float factor = power_of_two(-exponent);
  V sums[4] = {};
  each_chain(n, [&](int chain, int64_t i, int64_t count) {
    V v = load_count<V>(x + i, count) * factor;
    sums[chain] += v * v;
  });
  norm.sum = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  return norm;
}

float half_sum_of_squares_loop(const float* x, int exponent, int64_t n) {
  Power power(exponent);
  V sums[4] = {};
  each_chain(n, [&](int chain, int64_t i, int64_t count) {
    V v = load_count<V>(x + i, count) * power.first * power.second;
    v = half_to_float(float_to_half(v));
    sums[chain] += v * v;
  });
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
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
    H h = load_count<H>(x + i, count);
    canaries |= cast<H>(h == mlx_ane::host::canary);
    H magnitude = h & uint16_t{0x7fff};
    largest = largest > magnitude ? largest : magnitude;
    if (col_bits != nullptr) {
      H seen = load_count<H>(col_bits + i, count);
      store_count(col_bits + i, static_cast<H>(seen | magnitude), count);
    }
    V factor = splat(row_factor);
    if (col_factor != nullptr) {
      factor *= load_count<V>(col_factor + i, count);
    }
    V value = half_to_float(h) * factor;
    if (accumulate) {
      value += load_count<V>(y + i, count);
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
