// Table of inner loops, one body per instruction set, chosen at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mlx_ane::host {

/// What one row needs for its power-of-two scale.
struct RowNorm {
  /// Bits of the largest magnitude; NaN and infinity compare largest.
  uint32_t max_bits;
  /// Sum of squares of the row divided by the power of two below that maximum.
  float sum;
};

/// Constants of Adam in fp32, see AdamStep.
struct AdamConstants {
  float b1, b2, one_minus_b1, one_minus_b2, eps, keep, keep_rest, c1, c2,
      gradient_scale;
};

/// The half that fills an output surface before evaluation. A NaN whose payload
/// no arithmetic produces, so a surviving one shows what was never written.
inline constexpr uint16_t canary = 0x7e5a;

/// Any bit set in a row of halves.
struct HalfRowBits {
  bool canary = false;
  bool nonfinite = false;
  bool nonzero = false;
};

/// Memory to fetch while another loop runs, a share with each of its tiles.
struct Prefetch {
  const char* first = nullptr;
  int64_t bytes_per_tile = 0;
};

/// Arrays have n elements, are only aligned to their element, and do not
/// overlap unless said otherwise. `stream` asks for stores that bypass the
/// cache.
struct Loops {
  const char* name;
  /// Floats of one register.
  int lanes;

  void (*half_to_float)(const uint16_t* x, float* y, int64_t n, bool stream);
  void (*float_to_half)(const float* x, uint16_t* y, int64_t n, bool stream);
  /// x = float of half(x).
  void (*round_to_half)(float* x, int64_t n);
  void (*bfloat_to_float)(const uint16_t* x, float* y, int64_t n);
  void (*float_to_bfloat)(const float* x, uint16_t* y, int64_t n);

  /// y = half(x * 2^exponent).
  void (*scale_to_half)(
      const float* x, int exponent, uint16_t* y, int64_t n, bool stream);
  RowNorm (*row_norm)(const float* x, int64_t n);
  /// Sum of squares of half(x * 2^exponent).
  float (*half_sum_of_squares)(const float* x, int exponent, int64_t n);

  /// Pairs of rows as halves side by side: y[i * y_ld + c] holds x[2 i][c] and
  /// x[2 i + 1][c], each times 2^exponent of its row (null: as it is). A
  /// missing last row is zero.
  void (*pair_rows)(
      const float* x,
      int64_t ld,
      int64_t rows,
      const int16_t* exponent,
      uint32_t* y,
      int64_t y_ld,
      int64_t n);
  /// y (rows, cols) = floats of the (cols, rows) halves of src; rows are even.
  /// Through a panel of rows / 2 * (cols + 64) pairs, or streamed without one.
  void (*unpack_columns)(
      const uint16_t* src,
      int64_t ld,
      int64_t rows,
      int64_t cols,
      float* y,
      int64_t y_ld,
      uint32_t* panel);
  /// Transposes (rows, cols) pairs; leading dimensions count halves.
  void (*transpose_pairs)(
      const uint16_t* src,
      int64_t src_ld,
      int64_t rows,
      int64_t cols,
      uint16_t* dst,
      int64_t dst_ld,
      bool stream,
      const Prefetch& next);

  /// y (+)= x * row_factor * col_factor (nullptr: 1), and what x holds; ORs the
  /// magnitude bits of x into col_bits (nullptr: not wanted).
  HalfRowBits (*unpack_row)(
      const uint16_t* x,
      float row_factor,
      const float* col_factor,
      float* y,
      bool accumulate,
      uint16_t* col_bits,
      int64_t n,
      bool stream);

  /// One step on fp32 arrays; outputs may be the inputs of the same name.
  void (*adam)(
      const float* p,
      const float* g,
      const float* m,
      const float* v,
      float* p_out,
      float* m_out,
      float* v_out,
      int64_t n,
      const AdamConstants& constants);
  /// Stochastic rounding of elements index .. index + n of the block of `key`.
  void (*stochastic_half)(
      const float* x, uint16_t* y, int64_t n, uint32_t key, uint32_t index);
  void (*stochastic_bfloat)(
      const float* x, uint16_t* y, int64_t n, uint32_t key, uint32_t index);
  double (*sum_of_squares)(const float* x, int64_t n);

  float (*maximum)(const float* x, int64_t n);
  float (*sum)(const float* x, int64_t n);
  /// y = exp(scale * x - shift), returns its sum; y may be x, or
  /// nullptr where only the sum is wanted.
  float (*exp_sum)(
      const float* x, float scale, float shift, float* y, int64_t n);
  /// y = exp(x - shift) * factor + offset; y may be x.
  void (*exp_scale)(
      const float* x,
      float shift,
      float factor,
      float offset,
      float* y,
      int64_t n);
  /// Sum of x * y.
  float (*dot)(const float* x, const float* y, int64_t n);
  /// y = p * (y - delta) * scale.
  void (*softmax_backward)(
      const float* p, float delta, float scale, float* y, int64_t n);
  /// y *= factor; y += offset.
  void (*scale_add)(float* y, float factor, float offset, int64_t n);
  /// out = gate * sigmoid(gate) * up.
  void (*swiglu)(const float* gate, const float* up, float* out, int64_t n);
  void (*swiglu_backward)(
      const float* gate,
      const float* up,
      const float* d_out,
      float* d_gate,
      float* d_up,
      int64_t n);

  /// 12 registers of fused multiply-adds a round; see probe.h.
  float (*fma_rounds)(int64_t rounds);
  void (*adam_traffic)(float* p, const float* g, float* m, float* v, int64_t n);
  /// adam in ten passes over whole arrays, each one vector function, as code
  /// without a fused kernel does it; t is n elements of work. For the
  /// benchmark.
  void (*adam_passes)(
      float* p,
      const float* g,
      float* m,
      float* v,
      float* t,
      int64_t n,
      const AdamConstants& constants);
};

/// The loops in use: the best that this CPU runs, unless set_target changed it.
const Loops& loops();

/// Names of the targets that this CPU runs, best first ("avx512", "avx2",
/// "neon", "generic").
std::vector<std::string> targets();

/// Selects a target by name, or the best for ""; std::invalid_argument
/// otherwise.
void set_target(const std::string& name);

}  // namespace mlx_ane::host
