// Loops that measure the machine; included by loops_body.h.

namespace {

float fma_rounds_loop(int64_t rounds) {
  // Two FMA units of four cycles' latency, with room to spare.
  // Every loop over `a` is unrolled, so that it stays in registers.
  V a[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) {
    a[i] = splat(static_cast<float>(i));
  }
  V b = splat(0.999f), c = splat(1e-3f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) {
      a[i] = a[i] * b + c;
    }
  }
  V total = a[0];
#pragma GCC unroll 12
  for (int i = 1; i < 12; ++i) {
    total += a[i];
  }
  return sum(total);
}

void adam_traffic_loop(
    float* p, const float* g, float* m, float* v, int64_t n) {
  for (int64_t i = 0; i + lanes <= n; i += lanes) {
    U old_p = load<U>(reinterpret_cast<const uint32_t*>(p + i));
    V old_m = load<V>(m + i), old_v = load<V>(v + i);
    // One AND, so that g is read.
    U mixed = old_p & cast<U>(load<V>(g + i));
    store(p + i, old_m);
    store(m + i, old_v);
    store(v + i, cast<V>(mixed));
  }
}

/// y = of(x...) over n elements, one vector function's pass.
template <class Of, class... Inputs>
__attribute__((noinline)) void pass(
    float* y, int64_t n, Of of, const Inputs*... x) {
  each_register(n, 0, [&](int64_t i, int64_t count) {
    store_count(y + i, of(load_count<V>(x + i, count)...), count);
  });
}

void adam_passes_loop(
    float* p,
    const float* g,
    float* m,
    float* v,
    float* t,
    int64_t n,
    const AdamConstants& k) {
  float rest1 = k.one_minus_b1, rest2 = k.one_minus_b2;
  pass(m, n, [&](V a) { return a * k.b1; }, m);
  pass(m, n, [&](V a, V b) { return a + b * rest1; }, m, g);
  pass(t, n, [](V a) { return a * a; }, g);
  pass(v, n, [&](V a) { return a * k.b2; }, v);
  pass(v, n, [&](V a, V b) { return a + b * rest2; }, v, t);
  pass(t, n, [](V a) { return sqrt(a); }, v);
  pass(t, n, [&](V a) { return a * k.c2 + k.eps; }, t);
  pass(t, n, [](V a, V b) { return a / b; }, m, t);
  pass(p, n, [&](V a) { return a * k.keep; }, p);
  pass(p, n, [&](V a, V b) { return a - b * k.c1; }, p, t);
}

}  // namespace
