// Adam as a plain scalar loop, to compare with.
#include <cmath>

#include "host/half.h"
#include "host/rounding.h"
#include "kernels/adam.h"

namespace mlx_ane::kernels {

namespace {

float load(const void* data, Float type, int64_t i) {
  switch (type) {
    case Float::f32:
      return static_cast<const float*>(data)[i];
    case Float::f16:
      return host::half_to_float(static_cast<const uint16_t*>(data)[i]);
    default:
      return host::bfloat_to_float(static_cast<const uint16_t*>(data)[i]);
  }
}

void store(void* data, Float type, int64_t i, float value) {
  switch (type) {
    case Float::f32:
      static_cast<float*>(data)[i] = value;
      break;
    case Float::f16:
      static_cast<uint16_t*>(data)[i] = host::float_to_half(value);
      break;
    default:
      static_cast<uint16_t*>(data)[i] = host::float_to_bfloat(value);
  }
}

void store_stochastic(
    void* data,
    Float type,
    int64_t i,
    float value,
    uint64_t seed,
    int64_t index) {
  uint32_t random = host::random_bits(
      host::random_key(seed, index),
      static_cast<uint32_t>(index % host::random_block));
  if (type == Float::f32) {
    store(data, type, i, value);
  } else {
    static_cast<uint16_t*>(data)[i] =
        type == Float::f16 ? host::stochastic_half(value, random)
                           : host::stochastic_bfloat(value, random);
  }
}

}  // namespace

void adam_reference(const AdamTensor& t, const AdamStep& step) {
  auto b1 = static_cast<float>(step.options.beta1);
  auto b2 = static_cast<float>(step.options.beta2);
  auto one_minus_b1 = static_cast<float>(1.0 - step.options.beta1);
  auto one_minus_b2 = static_cast<float>(1.0 - step.options.beta2);
  auto eps = static_cast<float>(step.options.eps);
  auto keep = step.keep();
  auto keep_rest = step.keep_rest();
  for (int64_t i = 0; i < t.n; ++i) {
    float g = load(t.g, t.g_type, i) * step.gradient_scale;
    float m = b1 * load(t.m, t.state_type, i) + one_minus_b1 * g;
    float v = b2 * load(t.v, t.state_type, i) + one_minus_b2 * g * g;
    float p = load(t.p, t.p_type, i);
    float rest = keep_rest != 0.0f ? keep_rest * p : 0.0f;
    p = p * keep + (rest - step.c1 * m / (std::sqrt(v) * step.c2 + eps));
    store(t.m_out, t.state_type, i, m);
    store(t.v_out, t.state_type, i, v);
    if (step.options.stochastic) {
      store_stochastic(t.p_out, t.p_type, i, p, step.seed, t.offset + i);
    } else {
      store(t.p_out, t.p_type, i, p);
    }
  }
}

}  // namespace mlx_ane::kernels
