// Kernels that apply one function to every float of an operand.
#pragma once

#include "device/emulated/copy.h"
#include "device/emulated/op.h"

namespace mlx_ane::emulated {

/// z = f(x). x must be of a float type.
template <class F>
LoweredOp unary_float(const Call& call, F f) {
  auto x = call.operand("x"), z = call.results[0];
  call.need(
      mil::is_float(x.type.dtype),
      "x is " + to_string(x.type) + ", but must be fp16 or fp32");
  return LoweredOp({x.type}, [=, n = x.size()](const Frame& frame) {
    auto* a = x.floats(frame);
    auto* out = z.floats(frame);
    for (int64_t i = 0; i < n; ++i) {
      out[i] = f(a[i]);
    }
  });
}

/// z = exact(x) in the exact numerics, fast(x) otherwise.
template <class Fast, class Exact>
LoweredOp unary_table(const Call& call, Fast fast, Exact exact) {
  auto plain = unary_float(call, fast);
  auto table = unary_float(call, exact).kernel;
  return LoweredOp(
      plain.types, [plain = plain.kernel, table](const Frame& frame) {
        (frame.numerics == Numerics::fast ? plain : table)(frame);
      });
}

}  // namespace mlx_ane::emulated
