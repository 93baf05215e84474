// Kernels that apply one function to every float of an operand.
#pragma once

#include "device/emulated/copy.h"
#include "device/emulated/op.h"

namespace mlx_ane::emulated {

/// f(x, z, n) on runs of elements. x must be of a float type.
template <class F>
LoweredOp unary_runs(const Call& call, F f) {
  auto x = call.operand("x"), z = call.results[0];
  call.need(
      mil::is_float(x.type.dtype),
      "x is " + to_string(x.type) + ", but must be fp16 or fp32");
  auto columns = columns_of(x.shape());
  return LoweredOp::by_rows(
      x.type, [=](const Frame& frame, int64_t first, int64_t last) {
        auto begin = first * columns;
        f(x.floats(frame) + begin,
          z.floats(frame) + begin,
          (last - first) * columns);
      });
}

/// z = f(x) for each element.
template <class F>
LoweredOp unary_float(const Call& call, F f) {
  return unary_runs(call, [f](const float* x, float* z, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      z[i] = f(x[i]);
    }
  });
}

/// z = exact(x) in the numerics of a chip, what `plain` does otherwise.
template <class Exact>
LoweredOp or_table(const Call& call, LoweredOp plain, Exact exact) {
  auto table = unary_float(call, exact).rows;
  plain.rows = [plain = plain.rows, table](
                   const Frame& frame, int64_t first, int64_t last) {
    (frame.numerics <= Numerics::fast ? plain : table)(frame, first, last);
  };
  return plain;
}

template <class Fast, class Exact>
LoweredOp unary_table(const Call& call, Fast fast, Exact exact) {
  return or_table(call, unary_float(call, fast), exact);
}

}  // namespace mlx_ane::emulated
