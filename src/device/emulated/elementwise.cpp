// Elementwise operations of one, two and three operands, with NumPy
// broadcasting.
#include <cmath>

#include "device/emulated/broadcast.h"
#include "device/emulated/unary.h"

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
RowKernel binary_kernel(const Call& call, const Shape& shape, F f) {
  auto x = call.operand("x"), y = call.operand("y"), z = call.results[0];
  Loop<2> loop(shape, {&x.shape(), &y.shape()});
  auto columns = columns_of(shape);
  return [=](const Frame& frame, int64_t first, int64_t last) {
    auto *a = x.data<In>(frame), *b = y.data<In>(frame);
    auto* out = z.data<Out>(frame);
    auto body = [&](int64_t at, auto offset, int64_t n, auto step) {
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
      } else if (step[0] == 0 && step[1] == 1) {
        auto scalar = *pa;
        for (int64_t i = 0; i < n; ++i) {
          po[i] = f(scalar, pb[i]);
        }
      } else {
        for (int64_t i = 0; i < n; ++i) {
          po[i] = f(pa[i * step[0]], pb[i * step[1]]);
        }
      }
    };
    loop.run(first * columns, last * columns, body);
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

/// F has overloads for float and int32_t.
template <class F>
LoweredOp arithmetic(const Call& call) {
  auto shape = binary_shape(call);
  auto dtype = call.operand("x").type.dtype;
  if (mil::is_float(dtype)) {
    return LoweredOp::by_rows(
        {dtype, shape}, binary_kernel<float, float>(call, shape, F{}));
  }
  auto f = [dtype](int32_t a, int32_t b) { return wrap(F{}(a, b), dtype); };
  return LoweredOp::by_rows(
      {dtype, shape}, binary_kernel<int32_t, int32_t>(call, shape, f));
}

template <class F>
LoweredOp comparison(const Call& call) {
  auto shape = binary_shape(call);
  auto kernel = mil::is_float(call.operand("x").type.dtype)
                    ? binary_kernel<float, int32_t>(call, shape, F{})
                    : binary_kernel<int32_t, int32_t>(call, shape, F{});
  return LoweredOp::by_rows({DType::boolean, shape}, kernel);
}

template <class F>
LoweredOp logical(const Call& call) {
  auto shape = binary_shape(call);
  call.need(
      call.operand("x").type.dtype == DType::boolean, "x and y must be bool");
  return LoweredOp::by_rows(
      {DType::boolean, shape},
      binary_kernel<int32_t, int32_t>(call, shape, F{}));
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

// Division of integers by zero gives 0; the quotient of the least integer and
// -1 wraps.
int64_t quotient(int32_t a, int32_t b) {
  return b == 0 ? 0 : int64_t{a} / b;
}
struct RealDiv {
  float operator()(float a, float b) const {
    return a / b;
  }
  int32_t operator()(int32_t a, int32_t b) const {
    return static_cast<int32_t>(quotient(a, b));
  }
};
struct FloorDiv {
  float operator()(float a, float b) const {
    return std::floor(a / b);
  }
  int32_t operator()(int32_t a, int32_t b) const {
    auto q = quotient(a, b);
    bool rounded_up = b != 0 && (a < 0) != (b < 0) && q * b != a;
    return static_cast<int32_t>(q - rounded_up);
  }
};
// The sign is that of the divisor, as in Python.
struct Mod {
  float operator()(float a, float b) const {
    auto r = std::fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
  }
  int32_t operator()(int32_t a, int32_t b) const {
    int64_t r = b == 0 ? 0 : int64_t{a} % b;
    return static_cast<int32_t>(r != 0 && (r < 0) != (b < 0) ? r + b : r);
  }
};
struct Maximum {
  template <class T>
  T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};
struct Minimum {
  template <class T>
  T operator()(T a, T b) const {
    return a < b || a != a ? a : b;
  }
};
struct Pow {
  float operator()(float a, float b) const {
    return std::pow(a, b);
  }
  int32_t operator()(int32_t a, int32_t b) const {
    auto value = std::pow(static_cast<double>(a), static_cast<double>(b));
    return std::abs(value) < 2147483648.0 ? static_cast<int32_t>(value) : 0;
  }
};

using Equal = std::equal_to<>;
using NotEqual = std::not_equal_to<>;
using Greater = std::greater<>;
using GreaterEqual = std::greater_equal<>;
using Less = std::less<>;
using LessEqual = std::less_equal<>;

float sign(float x) {
  return x > 0 ? 1.0f : x < 0 ? -1.0f : x;
}

template <float (*f)(float)>
LoweredOp unary(const Call& call) {
  return unary_float(call, [](float x) { return f(x); });
}

/// Of integers, the value itself (or its absolute value, sign or square).
template <float (*f)(float), int32_t (*g)(int32_t)>
LoweredOp unary_any(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  if (mil::is_float(x.type.dtype)) {
    return unary<f>(call);
  }
  auto dtype = x.type.dtype;
  call.need(dtype != DType::string, "x must hold numbers");
  return LoweredOp({x.type}, [=, n = x.size()](const Frame& frame) {
    auto* a = x.ints(frame);
    auto* out = z.ints(frame);
    for (int64_t i = 0; i < n; ++i) {
      out[i] = wrap(g(a[i]), dtype);
    }
  });
}

int32_t same(int32_t x) {
  return x;
}
int32_t absolute(int32_t x) {
  return x < 0 ? Sub{}(0, x) : x;
}
int32_t signum(int32_t x) {
  return (x > 0) - (x < 0);
}
int32_t squared(int32_t x) {
  return Mul{}(x, x);
}
float square(float x) {
  return x * x;
}

// MIL keeps these away from their poles by an epsilon.
LoweredOp log(const Call& call) {
  return unary_float(call, [e = call.number("epsilon", 1e-45f)](float x) {
    return std::log(x + e);
  });
}
LoweredOp inverse(const Call& call) {
  return unary_float(call, [e = call.number("epsilon", 1e-4f)](float x) {
    return 1.0f / (x + e);
  });
}
LoweredOp rsqrt(const Call& call) {
  return unary_float(call, [e = call.number("epsilon", 1e-12f)](float x) {
    return 1.0f / std::sqrt(x + e);
  });
}

LoweredOp clip(const Call& call) {
  auto low = call.number("alpha", -INFINITY);
  auto high = call.number("beta", INFINITY);
  return unary_float(call, [=](float x) {
    return x < low ? low : x > high ? high : x;
  });
}
LoweredOp threshold(const Call& call) {
  return unary_float(call, [a = call.number("alpha", 0.0f)](float x) {
    return x < a ? a : x;
  });
}

LoweredOp logical_not(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  call.need(x.type.dtype == DType::boolean, "x must be bool");
  return LoweredOp({x.type}, [=, n = x.size()](const Frame& frame) {
    auto* a = x.ints(frame);
    auto* out = z.ints(frame);
    for (int64_t i = 0; i < n; ++i) {
      out[i] = !a[i];
    }
  });
}

LoweredOp select(const Call& call) {
  auto cond = call.operand("cond"), a = call.operand("a"),
       b = call.operand("b"), z = call.results[0];
  call.need(cond.type.dtype == DType::boolean, "cond must be bool");
  call.need(a.type.dtype == b.type.dtype, "a and b must have one dtype");
  auto shape = broadcast(cond.shape(), broadcast(a.shape(), b.shape()));
  Loop<3> loop(shape, {&cond.shape(), &a.shape(), &b.shape()});
  auto columns = columns_of(shape);
  auto rows = [=](const Frame& frame, int64_t first, int64_t last) {
    auto *c = cond.ints(frame), *pa = a.ints(frame), *pb = b.ints(frame);
    auto* out = z.ints(frame);
    auto body = [&](int64_t at, auto offset, int64_t n, auto step) {
      for (int64_t i = 0; i < n; ++i) {
        out[at + i] = c[offset[0] + i * step[0]] ? pa[offset[1] + i * step[1]]
                                                 : pb[offset[2] + i * step[2]];
      }
    };
    loop.run(first * columns, last * columns, body);
  };
  auto lowered = LoweredOp::by_rows({a.type.dtype, shape}, rows);
  lowered.moves = true;
  return lowered;
}

constexpr Op table[] = {
    {"add", arithmetic<Add>, "iOS15 elementwise_binary: add"},
    {"sub", arithmetic<Sub>, "iOS15 elementwise_binary: sub"},
    {"mul", arithmetic<Mul>, "iOS15 elementwise_binary: mul"},
    {"real_div", arithmetic<RealDiv>, "iOS15 elementwise_binary: real_div"},
    {"floor_div", arithmetic<FloorDiv>, "iOS15 elementwise_binary: floor_div"},
    {"mod", arithmetic<Mod>, "iOS15 elementwise_binary: mod"},
    {"maximum", arithmetic<Maximum>, "iOS15 elementwise_binary: maximum"},
    {"minimum", arithmetic<Minimum>, "iOS15 elementwise_binary: minimum"},
    {"pow", arithmetic<Pow>, "iOS15 elementwise_binary: pow"},
    {"equal", comparison<Equal>, "iOS15 elementwise_binary: equal"},
    {"not_equal", comparison<NotEqual>, "iOS15 elementwise_binary: not_equal"},
    {"greater", comparison<Greater>, "iOS15 elementwise_binary: greater"},
    {"greater_equal",
     comparison<GreaterEqual>,
     "iOS15 elementwise_binary: greater_equal"},
    {"less", comparison<Less>, "iOS15 elementwise_binary: less"},
    {"less_equal",
     comparison<LessEqual>,
     "iOS15 elementwise_binary: less_equal"},
    {"logical_and",
     logical<std::logical_and<>>,
     "iOS15 elementwise_binary: logical_and"},
    {"logical_or",
     logical<std::logical_or<>>,
     "iOS15 elementwise_binary: logical_or"},
    {"logical_xor",
     logical<std::not_equal_to<>>,
     "iOS15 elementwise_binary: logical_xor"},
    {"abs", unary_any<std::fabs, absolute>, "iOS15 elementwise_unary: abs"},
    {"acos", unary<std::acos>, "iOS15 elementwise_unary: acos"},
    {"asin", unary<std::asin>, "iOS15 elementwise_unary: asin"},
    {"atan", unary<std::atan>, "iOS15 elementwise_unary: atan"},
    {"atanh", unary<std::atanh>, "iOS15 elementwise_unary: atanh"},
    {"ceil", unary_any<std::ceil, same>, "iOS15 elementwise_unary: ceil"},
    {"clip", clip, "iOS15 elementwise_unary: clip"},
    {"cos", unary<std::cos>, "iOS15 elementwise_unary: cos"},
    {"cosh", unary<std::cosh>, "iOS15 elementwise_unary: cosh"},
    {"erf", unary<std::erf>, "iOS15 elementwise_unary: erf"},
    {"exp", unary<std::exp>, "iOS15 elementwise_unary: exp"},
    {"exp2", unary<std::exp2>, "iOS15 elementwise_unary: exp2"},
    {"floor", unary_any<std::floor, same>, "iOS15 elementwise_unary: floor"},
    {"inverse", inverse, "iOS15 elementwise_unary: inverse"},
    {"log", log, "iOS15 elementwise_unary: log"},
    {"logical_not", logical_not, "iOS15 elementwise_unary: logical_not"},
    {"round",
     unary_any<std::nearbyint, same>,
     "iOS15 elementwise_unary: round"},
    {"rsqrt", rsqrt, "iOS15 elementwise_unary: rsqrt"},
    {"sign", unary_any<sign, signum>, "iOS15 elementwise_unary: sign"},
    {"sin", unary<std::sin>, "iOS15 elementwise_unary: sin"},
    {"sinh", unary<std::sinh>, "iOS15 elementwise_unary: sinh"},
    {"sqrt", unary<std::sqrt>, "iOS15 elementwise_unary: sqrt"},
    {"square", unary_any<square, squared>, "iOS15 elementwise_unary: square"},
    {"tan", unary<std::tan>, "iOS15 elementwise_unary: tan"},
    {"threshold", threshold, "iOS15 elementwise_unary: threshold"},
    {"select", select, "iOS15 control_flow: select"},
};

}  // namespace

std::span<const Op> elementwise_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
