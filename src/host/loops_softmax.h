// Loops of attention, cross-entropy and SwiGLU; included by loops_body.h.

namespace {

float maximum_loop(const float* x, int64_t n) {
  V highest = splat(-__builtin_inff());
  float result = -__builtin_inff();
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    highest = max(load<V>(x + i), highest);
  }
  for (int lane = 0; lane < lanes; ++lane) {
    result = highest[lane] > result ? highest[lane] : result;
  }
  for (; i < n; ++i) {
    result = x[i] > result ? x[i] : result;
  }
  return result;
}

/// Sum of term(i, count) over registers, in four chains.
template <class Term>
inline float sum_registers(int64_t n, Term term) {
  V sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    for (int chain = 0; chain < 4; ++chain) {
      sums[chain] += term(i + chain * lanes, int64_t{lanes});
    }
  }
  for (; i < n; i += lanes) {
    int64_t count = n - i < lanes ? n - i : int64_t{lanes};
    V value = term(i, count);
    // Lanes past the end may hold anything, exp(0) for one.
    for (int64_t lane = count; lane < lanes; ++lane) {
      value[lane] = 0.0f;
    }
    sums[0] += value;
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

float sum_loop(const float* x, int64_t n) {
  return sum_registers(
      n, [&](int64_t i, int64_t count) { return load_count<V>(x + i, count); });
}

float dot_loop(const float* x, const float* y, int64_t n) {
  return sum_registers(n, [&](int64_t i, int64_t count) {
    return load_count<V>(x + i, count) * load_count<V>(y + i, count);
  });
}

float exp_sum_loop(
    const float* x, float scale, float shift, float* y, int64_t n) {
  return sum_registers(n, [&](int64_t i, int64_t count) {
    V value = exp(load_count<V>(x + i, count) * scale - shift);
    if (y != nullptr) {
      store_count(y + i, value, count);
    }
    return value;
  });
}

void exp_scale_loop(
    const float* x,
    float shift,
    float factor,
    float offset,
    float* y,
    int64_t n) {
  each_register(n, 0, [&](int64_t i, int64_t count) {
    V value = exp(load_count<V>(x + i, count) - shift);
    store_count(y + i, value * factor + offset, count);
  });
}

void softmax_backward_loop(
    const float* p, float delta, float scale, float* y, int64_t n) {
  each_register(n, 0, [&](int64_t i, int64_t count) {
    V value =
        load_count<V>(p + i, count) * (load_count<V>(y + i, count) - delta);
    store_count(y + i, value * scale, count);
  });
}

void scale_add_loop(float* y, float factor, float offset, int64_t n) {
  each_register(n, 0, [&](int64_t i, int64_t count) {
    store_count(y + i, load_count<V>(y + i, count) * factor + offset, count);
  });
}

inline V sigmoid(V x) {
  return 1.0f / (1.0f + exp(-x));
}

void swiglu_loop(const float* gate, const float* up, float* out, int64_t n) {
  each_register(n, 0, [&](int64_t i, int64_t count) {
    V g = load_count<V>(gate + i, count);
    store_count(out + i, g * sigmoid(g) * load_count<V>(up + i, count), count);
  });
}

void swiglu_backward_loop(
    const float* gate,
    const float* up,
    const float* d_out,
    float* d_gate,
    float* d_up,
    int64_t n) {
  each_register(n, 0, [&](int64_t i, int64_t count) {
    V g = load_count<V>(gate + i, count);
    V u = load_count<V>(up + i, count);
    V dy = load_count<V>(d_out + i, count);
    V s = sigmoid(g);
    store_count(d_gate + i, dy * u * s * (1.0f + g * (1.0f - s)), count);
    store_count(d_up + i, dy * g * s, count);
  });
}

}  // namespace
