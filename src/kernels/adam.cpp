// One fused pass of Adam/AdamW, and the sum of squares of its gradients.
#include "kernels/adam.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "host/environment.h"
#include "host/half.h"
#include "host/loops.h"
#include "host/rounding.h"
#include "kernels/adam_accelerate.h"

namespace mlx_ane::kernels {

namespace {

/// Elements converted at a time; the fp32 tiles of all arrays stay in L1.
constexpr int64_t tile = 1024;
static_assert(host::random_block % tile == 0);

std::atomic<AdamImplementation>& implementation() {
  static std::atomic<AdamImplementation> chosen = [] {
    auto name =
        host::choice_variable("MLX_ANE_ADAM", {"auto", "loop", "accelerate"});
    return name == "accelerate" ? AdamImplementation::accelerate
                                : AdamImplementation::loop;
  }();
  return chosen;
}

decltype(host::Loops::adam) adam_loop() {
  return implementation() == AdamImplementation::accelerate
             ? adam_accelerate
             : host::loops().adam;
}

/// The array from element i on, as bytes.
const char* at(const void* data, Float type, int64_t i) {
  return static_cast<const char*>(data) +
         i * static_cast<int64_t>(size_of(type));
}
char* at(void* data, Float type, int64_t i) {
  return static_cast<char*>(data) + i * static_cast<int64_t>(size_of(type));
}

/// fp32 values of elements i .. i + n: in place, or converted into `buffer`.
const float* read(
    const void* data, Float type, int64_t i, int64_t n, float* buffer) {
  if (type == Float::f32) {
    return static_cast<const float*>(data) + i;
  }
  host::to_float(at(data, type, i), type, buffer, n);
  return buffer;
}

float* write_to(void* data, Float type, int64_t i, float* buffer) {
  return type == Float::f32 ? static_cast<float*>(data) + i : buffer;
}

void write_stochastic(
    const float* p,
    void* data,
    Float type,
    int64_t i,
    int64_t n,
    uint64_t seed,
    int64_t index) {
  // A tile that starts anywhere crosses at most one block of the generator.
  while (n > 0) {
    int64_t in_block = index % host::random_block;
    int64_t count = std::min(n, host::random_block - in_block);
    auto round = type == Float::f16 ? host::loops().stochastic_half
                                    : host::loops().stochastic_bfloat;
    round(
        p,
        static_cast<uint16_t*>(data) + i,
        count,
        host::random_key(seed, index),
        static_cast<uint32_t>(in_block));
    p += count;
    i += count;
    index += count;
    n -= count;
  }
}

/// Any mix of types, through fp32 tiles.
void adam_tiles(
    const AdamTensor& t,
    const AdamStep& step,
    const host::AdamConstants& constants) {
  alignas(64) float p[tile], g[tile], m[tile], v[tile];
  auto loop = adam_loop();
  for (int64_t i = 0; i < t.n; i += tile) {
    int64_t n = std::min(tile, t.n - i);
    float* p_out = write_to(t.p_out, t.p_type, i, p);
    float* m_out = write_to(t.m_out, t.state_type, i, m);
    float* v_out = write_to(t.v_out, t.state_type, i, v);
    loop(
        read(t.p, t.p_type, i, n, p),
        read(t.g, t.g_type, i, n, g),
        read(t.m, t.state_type, i, n, m),
        read(t.v, t.state_type, i, n, v),
        p_out,
        m_out,
        v_out,
        n,
        constants);
    if (t.p_type != Float::f32 && step.options.stochastic) {
      write_stochastic(p, t.p_out, t.p_type, i, n, step.seed, t.offset + i);
    } else if (t.p_type != Float::f32) {
      host::from_float(p, t.p_type, at(t.p_out, t.p_type, i), n);
    }
    if (t.state_type != Float::f32) {
      host::from_float(m, t.state_type, at(t.m_out, t.state_type, i), n);
      host::from_float(v, t.state_type, at(t.v_out, t.state_type, i), n);
    }
  }
}

}  // namespace

host::AdamConstants constants_of(const AdamStep& step) {
  return {
      .b1 = static_cast<float>(step.options.beta1),
      .b2 = static_cast<float>(step.options.beta2),
      .one_minus_b1 = static_cast<float>(1.0 - step.options.beta1),
      .one_minus_b2 = static_cast<float>(1.0 - step.options.beta2),
      .eps = static_cast<float>(step.options.eps),
      .keep = step.keep(),
      .keep_rest = step.keep_rest(),
      .c1 = step.c1,
      .c2 = step.c2,
      .gradient_scale = step.gradient_scale};
}

AdamImplementation adam_implementation_from(const std::string& name) {
  if (name == "accelerate") {
    return AdamImplementation::accelerate;
  }
  if (name == "loop") {
    return AdamImplementation::loop;
  }
  throw std::invalid_argument(
      "[mlx_ane.adam] got implementation \"" + name +
      "\", need \"loop\" or \"accelerate\".");
}

AdamImplementation adam_implementation() {
  return implementation();
}

void set_adam_implementation(AdamImplementation chosen) {
  implementation() = chosen;
}

AdamTensor part(const AdamTensor& t, int64_t begin, int64_t n) {
  return {
      at(t.p, t.p_type, begin),
      at(t.g, t.g_type, begin),
      at(t.m, t.state_type, begin),
      at(t.v, t.state_type, begin),
      at(t.p_out, t.p_type, begin),
      at(t.m_out, t.state_type, begin),
      at(t.v_out, t.state_type, begin),
      n,
      t.p_type,
      t.g_type,
      t.state_type,
      t.offset + begin};
}

void adam(const AdamTensor& t, const AdamStep& step) {
  host::AdamConstants constants = constants_of(step);
  if (t.p_type == Float::f32 && t.g_type == Float::f32 &&
      t.state_type == Float::f32) {
    adam_loop()(
        static_cast<const float*>(t.p),
        static_cast<const float*>(t.g),
        static_cast<const float*>(t.m),
        static_cast<const float*>(t.v),
        static_cast<float*>(t.p_out),
        static_cast<float*>(t.m_out),
        static_cast<float*>(t.v_out),
        t.n,
        constants);
    return;
  }
  adam_tiles(t, step, constants);
}

double sum_of_squares(const void* g, Float type, int64_t n) {
  if (type == Float::f32) {
    return host::loops().sum_of_squares(static_cast<const float*>(g), n);
  }
  alignas(64) float buffer[tile];
  double sum = 0.0;
  for (int64_t i = 0; i < n; i += tile) {
    int64_t count = std::min(tile, n - i);
    sum += host::loops().sum_of_squares(read(g, type, i, count, buffer), count);
  }
  return sum;
}

}  // namespace mlx_ane::kernels
