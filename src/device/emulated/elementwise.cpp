// Elementwise operations of one and two operands, with NumPy broadcasting.
#include <cmath>

#include "device/emulated/broadcast.h"

namespace mlx_ane::emulated {

Shape broadcast(const Shape& a, const Shape& b) {
  auto& longer = a.size() >= b.size() ? a : b;
  auto& shorter = a.size() >= b.size() ? b : a;
  Shape out = longer;
  auto lead = longer.size() - shorter.size();
  for (size_t d = 0; d < shorter.size(); ++d) {
    auto& size = out[lead + d];
    if (size != shorter[d] && size != 1 && shorter[d] != 1) {
      throw std::invalid_argument(
          "shapes " + to_string(a) + " and " + to_string(b) +
          " do not broadcast");
    }
    size = size == 1 ? shorter[d] : size;
  }
  return out;
}

namespace {

template <class In, class Out, class F>
Kernel binary_kernel(const Call& call, const Shape& shape, F f) {
  auto x = call.operand("x"), y = call.operand("y"), z = call.results[0];
  Loop<2> loop(shape, {&x.shape(), &y.shape()});
  return [=](const Frame& frame) {
    auto *a = x.data<In>(frame), *b = y.data<In>(frame);
    auto* out = z.data<Out>(frame);
    loop.run([&](int64_t at, auto offset, int64_t n, auto step) {
      auto *pa = a + offset[0], *pb = b + offset[1];
      auto* po = out + at;
      if (step[0] == 1 && step[1] == 1) {
        for (int64_t i = 0; i < n; ++i) {
          po[i] = f(pa[i], pb[i]);
        }
      } else if (step[0] == 1 && step[1] == 0) {
        auto scalar = *pb;
        for (int64_t i = 0; i < n; ++i) {
          po[i] = f(pa[i], scalar);
        }
      } else {
        for (int64_t i = 0; i < n; ++i) {
          po[i] = f(pa[i * step[0]], pb[i * step[1]]);
        }
      }
    });
  };
}

Shape binary_shape(const Call& call) {
  auto &x = call.operand("x"), &y = call.operand("y");
  call.need(
      x.type.dtype == y.type.dtype,
      "x is " + to_string(x.type) + " and y is " + to_string(y.type) +
          ", but both must have one dtype");
  call.need(x.type.dtype != DType::string, "strings have no arithmetic");
  return broadcast(x.shape(), y.shape());
}

// Integer arithmetic wraps, so it runs unsigned.
struct Add {
  float operator()(float a, float b) const {
    return a + b;
  }
  int32_t operator()(int32_t a, int32_t b) const {
    return static_cast<int32_t>(
        static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  }
};
struct Sub {
  float operator()(float a, float b) const {
    return a - b;
  }
  int32_t operator()(int32_t a, int32_t b) const {
    return static_cast<int32_t>(
        static_cast<uint32_t>(a) - static_cast<uint32_t>(b));
  }
};
struct Mul {
  float operator()(float a, float b) const {
    return a * b;
  }
  int32_t operator()(int32_t a, int32_t b) const {
    return static_cast<int32_t>(
        static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
  }
};

template <class F>
Built arithmetic(const Call& call) {
  auto shape = binary_shape(call);
  auto dtype = call.operand("x").type.dtype;
  Built built({{dtype, shape}});
  built.kernel = mil::is_float(dtype)
      ? binary_kernel<float, float>(call, shape, F{})
      : binary_kernel<int32_t, int32_t>(call, shape, F{});
  return built;
}

constexpr Op table[] = {
    {"add", arithmetic<Add>, "iOS15 elementwise_binary: add"},
    {"sub", arithmetic<Sub>, "iOS15 elementwise_binary: sub"},
    {"mul", arithmetic<Mul>, "iOS15 elementwise_binary: mul"},
};

} // namespace

std::span<const Op> elementwise_ops() {
  return table;
}

} // namespace mlx_ane::emulated
