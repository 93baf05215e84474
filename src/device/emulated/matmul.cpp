// matmul and linear: fp32 accumulation, or the chip's reported accumulator.
#include "blas/blas.h"
#include "device/emulated/broadcast.h"

namespace mlx_ane::emulated {

namespace {

/// One (m, k) x (k, n) product for each pair of the broadcast batch axes.
struct Geometry {
  int64_t m, k, n;
  bool transpose_x, transpose_y;
  Shape batch;
  Shape x_batch, y_batch; // batch axes of the operands
};

void multiply(
    const Geometry& g,
    const float* x,
    const float* y,
    float* z,
    Numerics) {
  if (g.m == 0 || g.n == 0) {
    return;
  }
  blas::sgemm(
      g.transpose_x,
      g.transpose_y,
      g.m,
      g.n,
      g.k,
      1.0f,
      x,
      g.transpose_x ? g.m : g.k,
      y,
      g.transpose_y ? g.k : g.n,
      0.0f,
      z,
      g.n);
}

Geometry geometry(const Call& call, Shape x, Shape y) {
  Geometry g{};
  g.transpose_x = call.flag("transpose_x", false);
  g.transpose_y = call.flag("transpose_y", false);
  auto take = [](Shape& shape) {
    auto size = shape.back();
    shape.pop_back();
    return size;
  };
  auto x_last = take(x), x_first = take(x);
  auto y_last = take(y), y_first = take(y);
  g.m = g.transpose_x ? x_last : x_first;
  g.k = g.transpose_x ? x_first : x_last;
  g.n = g.transpose_y ? y_first : y_last;
  auto y_k = g.transpose_y ? y_last : y_first;
  call.need(
      g.k == y_k,
      "x contracts over " + std::to_string(g.k) + " elements and y over " +
          std::to_string(y_k) + ", but they must be equal");
  g.batch = broadcast(x, y);
  g.x_batch = x;
  g.y_batch = y;
  return g;
}

Built matmul(const Call& call) {
  auto x = call.operand("x"), y = call.operand("y"), z = call.results[0];
  call.need(
      mil::is_float(x.type.dtype) && x.type.dtype == y.type.dtype,
      "x and y must be of one float type");
  call.need(
      !x.shape().empty() && !y.shape().empty(), "x and y must not be scalars");
  bool x_vector = x.shape().size() == 1, y_vector = y.shape().size() == 1;
  auto g = geometry(
      call,
      x_vector ? Shape{1, x.shape()[0]} : x.shape(),
      y_vector ? Shape{y.shape()[0], 1} : y.shape());
  auto shape = g.batch;
  if (!x_vector) {
    shape.push_back(g.m);
  }
  if (!y_vector) {
    shape.push_back(g.n);
  }
  Loop<2> loop(g.batch, {&g.x_batch, &g.y_batch});
  Built built({{x.type.dtype, shape}});
  built.kernel = [=](const Frame& frame) {
    auto *a = x.floats(frame), *b = y.floats(frame), *out = z.floats(frame);
    loop.run([&](int64_t at, auto offset, int64_t count, auto step) {
      for (int64_t i = 0; i < count; ++i) {
        multiply(
            g,
            a + (offset[0] + i * step[0]) * g.m * g.k,
            b + (offset[1] + i * step[1]) * g.k * g.n,
            out + (at + i) * g.m * g.n,
            frame.numerics);
      }
    });
  };
  return built;
}

constexpr Op table[] = {
    {"matmul", matmul, "iOS15 linear: matmul"},
};

} // namespace

std::span<const Op> matmul_ops() {
  return table;
}

} // namespace mlx_ane::emulated
