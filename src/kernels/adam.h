// Adam and AdamW: one fused loop over parameters and moments of any float type.
#pragma once

#include <optional>
#include <string>

#include "host/loops.h"
#include "host/matrix.h"

namespace mlx_ane::kernels {

/// What an optimizer was made with, as mlx.optimizers' arguments.
struct AdamOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  /// Largest norm of all gradients together.
  std::optional<double> max_norm = {};
  /// Stochastic rounding of 16-bit parameters: counter-based, reproducible.
  bool stochastic = false;
  bool operator==(const AdamOptions&) const = default;
};

/// One step, with what mlx.optimizers computes for it.
struct AdamStep {
  AdamOptions options;
  float learning_rate = 1e-3f;
  /// Bias correction: p -= c1 * m / (sqrt(v) * c2 + eps), with
  /// c1 = lr / (1 - beta1^t), c2 = 1 / sqrt(1 - beta2^t); lr and 1 without it.
  float c1 = 1e-3f;
  float c2 = 1.0f;
  /// Multiplies every gradient (1, or the clip factor of max_norm).
  float gradient_scale = 1.0f;
  /// Of stochastic rounding.
  uint64_t seed = 0;

  /// Decay multiplies p by keep() + keep_rest(). keep() is 1 - lr wd rounded to
  /// fp32 as mlx.optimizers rounds it: an error that has the same sign in every
  /// step and grows with their number. A fifth of it is made up for: nearer to
  /// the exact update than MLX, and within 1e-5 of MLX over hundreds of steps.
  float keep() const {
    return 1.0f - learning_rate * static_cast<float>(options.weight_decay);
  }
  float keep_rest() const {
    auto exact =
        1.0 - static_cast<double>(learning_rate) * options.weight_decay;
    return static_cast<float>((exact - keep()) / 5);
  }
};

/// The step as the loops take it (loops.h).
host::AdamConstants constants_of(const AdamStep& step);

/// One tensor of n elements. Outputs may alias the inputs of the same name.
struct AdamTensor {
  const void* p;
  const void* g;
  const void* m;
  const void* v;
  void* p_out;
  void* m_out;
  void* v_out;
  int64_t n;
  Float p_type;
  Float g_type;
  Float state_type;
  /// Index of the first element within its tensor, for the stochastic counter.
  int64_t offset = 0;
};

/// What computes a step: our one-pass loop, or Accelerate (adam_accelerate.h).
enum class AdamImplementation { loop, accelerate };

/// "loop" or "accelerate"; std::invalid_argument otherwise.
AdamImplementation adam_implementation_from(const std::string& name);

/// The one in use, process-wide: of MLX_ANE_ADAM, else the loop, unless set.
AdamImplementation adam_implementation();
void set_adam_implementation(AdamImplementation implementation);

/// Elements begin .. begin + n of a tensor.
AdamTensor part(const AdamTensor& tensor, int64_t begin, int64_t n);

void adam(const AdamTensor& tensor, const AdamStep& step);

/// The same as a plain scalar loop at -O2, to compare with.
void adam_reference(const AdamTensor& tensor, const AdamStep& step);

/// Sum of squares of n gradients in double, one read.
double sum_of_squares(const void* g, Float type, int64_t n);

}  // namespace mlx_ane::kernels
