// SwiGLU, tile by tile while in cache.
#include "kernels/swiglu.h"

#include <algorithm>

#include "host/half.h"
#include "host/loops.h"

namespace mlx_ane::kernels {

namespace {

/// Elements whose fp32 forms stay in L1 together.
constexpr int64_t tile = 1024;

/// fp32 values of elements i .. i + n, in place or in `buffer`.
const float* read(
    const void* data, Float type, int64_t i, int64_t n, float* buffer) {
  if (type == Float::f32) {
    return static_cast<const float*>(data) + i;
  }
  host::to_float(static_cast<const uint16_t*>(data) + i, type, buffer, n);
  return buffer;
}

/// Where fp32 results of elements from i on go before `write`.
float* target_of(void* data, Float type, int64_t i, float* buffer) {
  return type == Float::f32 ? static_cast<float*>(data) + i : buffer;
}

void write(const float* values, void* data, Float type, int64_t i, int64_t n) {
  if (type != Float::f32) {
    host::from_float(values, type, static_cast<uint16_t*>(data) + i, n);
  }
}

}  // namespace

void swiglu_forward(
    const void* gate, const void* up, Float type, void* out, int64_t n) {
  alignas(64) float gates[tile], ups[tile];
  for (int64_t i = 0; i < n; i += tile) {
    int64_t count = std::min(tile, n - i);
    float* result = target_of(out, type, i, gates);
    host::loops().swiglu(
        read(gate, type, i, count, gates),
        read(up, type, i, count, ups),
        result,
        count);
    write(result, out, type, i, count);
  }
}

void swiglu_backward(
    const void* gate,
    const void* up,
    const void* d_out,
    Float type,
    void* d_gate,
    void* d_up,
    int64_t n) {
  alignas(64) float gates[tile], ups[tile], grads[tile];
  for (int64_t i = 0; i < n; i += tile) {
    int64_t count = std::min(tile, n - i);
    float* gate_result = target_of(d_gate, type, i, gates);
    float* up_result = target_of(d_up, type, i, ups);
    host::loops().swiglu_backward(
        read(gate, type, i, count, gates),
        read(up, type, i, count, ups),
        read(d_out, type, i, count, grads),
        gate_result,
        up_result,
        count);
    write(gate_result, d_gate, type, i, count);
    write(up_result, d_up, type, i, count);
  }
}

}  // namespace mlx_ane::kernels
