// Rows of MLX's quantised matrices in fp32.
#pragma once

#include <string>

#include "host/matrix.h"

namespace mlx_ane::kernels {

/// MLX's quantisation modes (mlx.core.quantize).
enum class QuantizationMode { affine, mxfp4, mxfp8, nvfp4 };

/// A (rows, cols) matrix as mlx.core.quantize returns it, all parts contiguous:
/// element i of a row is the `bits` bits from bit i * bits of the row on, least
/// significant first; each `group_size` of them share a scale and, in mode
/// affine, a bias.
struct QuantizedMatrix {
  const uint8_t* data = nullptr;  // (rows, cols * bits / 8)
  const void* scales = nullptr;   // (rows, cols / group_size)
  const void* biases = nullptr;   // likewise, or nullptr
  Float scale_type = Float::f32;  // affine only; the other modes store bytes
  QuantizationMode mode = QuantizationMode::affine;
  int bits = 4;
  int64_t group_size = 64;
  int64_t rows = 0;
  int64_t cols = 0;
};

/// out (count, cols) = rows begin .. begin + count - 1. Formulas: affine
/// scale * q + bias (MLX); mxfp4 and mxfp8 e2m1 and e4m3 times 2^(s - 127), and
/// nvfp4 e2m1 times an e4m3 scale (OCP Microscaling Formats 1.0, NVIDIA).
void dequantize_rows(
    const QuantizedMatrix& w, int64_t begin, int64_t count, float* out);

}  // namespace mlx_ane::kernels
