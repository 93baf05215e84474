// Piecewise linear activation functions of the exact numerics.
#include "device/emulated/tables.h"

#include <array>
#include <cmath>

namespace mlx_ane::emulated {

namespace {

/// 33 points of f at equal distances over [low, high].
class Table {
 public:
  Table(float low, float high, float (*f)(float))
      : low_(low), step_((high - low) / (points - 1)) {
    for (int i = 0; i < points; ++i) {
      values_[i] = f(low + step_ * static_cast<float>(i));
    }
  }

  float operator()(float x) const {
    auto position = (x - low_) / step_;
    if (!(position > 0)) {
      return values_.front();
    }
    if (position >= points - 1) {
      return values_.back();
    }
    auto i = static_cast<int>(position);
    auto t = position - static_cast<float>(i);
    return values_[i] + t * (values_[i + 1] - values_[i]);
  }

 private:
  static constexpr int points = 33;
  float low_, step_;
  std::array<float, points> values_;
};

// The spans are those at which 33 points meet the reported errors.
constexpr float gelu_end = 3.875f;
constexpr float silu_end = 7.75f;

float sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}

}  // namespace

float table_sigmoid(float x) {
  static const Table table(-8, 8, sigmoid);
  return table(x);
}

float table_tanh(float x) {
  static const Table table(0, 4, [](float v) { return std::tanh(v); });
  return std::copysign(table(std::fabs(x)), x);
}

float table_gelu(float x) {
  static const Table table(-gelu_end, gelu_end, [](float v) {
    return 0.5f * v * (1.0f + std::erf(v * 0.70710678f));
  });
  return x <= -gelu_end ? 0.0f : x >= gelu_end ? x : table(x);
}

float table_silu(float x) {
  static const Table table(
      -silu_end, silu_end, [](float v) { return v * sigmoid(v); });
  return x <= -silu_end ? 0.0f : x >= silu_end ? x : table(x);
}

}  // namespace mlx_ane::emulated
