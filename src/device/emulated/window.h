// Sliding windows of convolutions and pools: padding, sizes, and im2col.
#pragma once

#include "device/emulated/op.h"

namespace mlx_ane::emulated {

/// Windows over up to three spatial axes of x (N, C, ...); missing leading axes
/// have size 1. All arrays are {depth, height, width}.
struct Window {
  int64_t in[3], kernel[3], stride[3], dilation[3], before[3], after[3], out[3];
  size_t rank = 0;  // spatial axes of x

  int64_t in_size() const {
    return in[0] * in[1] * in[2];
  }
  int64_t kernel_size() const {
    return kernel[0] * kernel[1] * kernel[2];
  }
  int64_t out_size() const {
    return out[0] * out[1] * out[2];
  }
  /// (N, channels, output axes)
  Shape shape(int64_t batch, int64_t channels) const;
};

/// Reads strides, dilations, pad and pad_type of a call. `ceil_mode` rounds
/// sizes up, for windows that start inside x or its leading padding.
Window window_of(
    const Call& call,
    const Shape& x,
    const std::vector<int64_t>& kernel,
    bool ceil_mode = false);

/// x: (channels, in...) -> columns: (channels * kernel, out). Zero where
/// padded.
void im2col(const Window& w, int64_t channels, const float* x, float* columns);
/// The transpose: adds columns back onto x (channels, in...).
void col2im(const Window& w, int64_t channels, const float* columns, float* x);

}  // namespace mlx_ane::emulated
