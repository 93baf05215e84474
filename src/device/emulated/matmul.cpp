// matmul, linear and einsum of two operands.
#include <algorithm>
#include <array>

#include "device/emulated/broadcast.h"
#include "device/emulated/copy.h"
#include "device/emulated/product.h"
#include "host/loops.h"

namespace mlx_ane::emulated {

namespace {

void need_floats(const Call& call, const Operand& x, const Operand& y) {
  call.need(
      mil::is_float(x.type.dtype) && x.type.dtype == y.type.dtype,
      "operands are " + to_string(x.type) + " and " + to_string(y.type) +
          ", but must be of one float type");
}

/// One product for each pair of the broadcast batch axes.
struct Batched {
  Product product;
  Shape batch, x_batch, y_batch;
};

Batched batched(const Call& call, Shape x, Shape y) {
  auto take = [](Shape& shape) {
    auto size = shape.back();
    shape.pop_back();
    return size;
  };
  auto x_last = take(x), x_first = take(x);
  auto y_last = take(y), y_first = take(y);
  bool tx = call.flag("transpose_x", false);
  bool ty = call.flag("transpose_y", false);
  auto k = tx ? x_first : x_last, y_k = ty ? y_last : y_first;
  call.need(
      k == y_k,
      "x contracts over " + std::to_string(k) + " elements and y over " +
          std::to_string(y_k) + ", but they must be equal");
  Product product{tx ? x_last : x_first, ty ? y_first : y_last, k, tx, ty};
  return {product, broadcast(x, y), x, y};
}

/// z (rows, 1) = x (rows, k) y (k, 1), as programs sum rows.
RowKernel times_vector(
    const Operand& x, const Operand& y, const Operand& z, Product p) {
  return [=](const Frame& frame, int64_t first, int64_t last) {
    auto *a = x.floats(frame) + first * p.k, *b = y.floats(frame);
    auto* out = z.floats(frame) + first;
    if (frame.numerics > Numerics::fast) {
      auto rows = p;
      rows.m = last - first;
      multiply(rows, a, b, nullptr, out, frame.numerics);
      return;
    }
    for (int64_t r = 0; r < last - first; ++r) {
      out[r] = host::loops().dot(a + r * p.k, b, p.k);
    }
  };
}

LoweredOp matmul(const Call& call) {
  auto x = call.operand("x"), y = call.operand("y"), z = call.results[0];
  need_floats(call, x, y);
  call.need(
      !x.shape().empty() && !y.shape().empty(), "x and y must not be scalars");
  bool x_vector = x.shape().size() == 1, y_vector = y.shape().size() == 1;
  auto b = batched(
      call,
      x_vector ? Shape{1, x.shape()[0]} : x.shape(),
      y_vector ? Shape{y.shape()[0], 1} : y.shape());
  auto shape = b.batch;
  if (!x_vector) {
    shape.push_back(b.product.m);
  }
  if (!y_vector) {
    shape.push_back(b.product.n);
  }
  Type type{x.type.dtype, shape};
  if (b.product.n == 1 && !b.product.transpose_a && !x_vector && !y_vector &&
      elements(b.y_batch) == 1) {
    return LoweredOp::by_rows(type, times_vector(x, y, z, b.product));
  }
  Loop<2> loop(b.batch, {&b.x_batch, &b.y_batch});
  return LoweredOp({type}, [=, p = b.product](const Frame& frame) {
    auto *px = x.floats(frame), *py = y.floats(frame);
    auto* out = z.floats(frame);
    loop.run([&](int64_t at, auto offset, int64_t count, auto step) {
      for (int64_t i = 0; i < count; ++i) {
        multiply(
            p,
            px + (offset[0] + i * step[0]) * p.m * p.k,
            py + (offset[1] + i * step[1]) * p.k * p.n,
            nullptr,
            out + (at + i) * p.m * p.n,
            frame.numerics);
      }
    });
  });
}

// x (..., in) @ weight (out, in) transposed + bias (out)
LoweredOp linear(const Call& call) {
  auto x = call.operand("x"), w = call.operand("weight"), z = call.results[0];
  auto bias = call.optional("bias");
  need_floats(call, x, w);
  call.need(
      !x.shape().empty() && w.shape().size() == 2 &&
          x.shape().back() == w.shape()[1],
      "x " + to_string(x.shape()) + " and weight " + to_string(w.shape()) +
          " must agree in their last axis");
  auto out = w.shape()[0], in = w.shape()[1];
  call.need(
      !bias || bias.shape() == Shape{out} || bias.size() == 1,
      "bias must have one value an output");
  auto shape = x.shape();
  shape.back() = out;
  auto rows = elements(shape) / std::max<int64_t>(out, 1);
  bool uniform = bias && bias.size() == 1;
  return LoweredOp({{x.type.dtype, shape}}, [=](const Frame& frame) {
    auto* y = z.floats(frame);
    multiply(
        {rows, out, in, false, true},
        x.floats(frame),
        w.floats(frame),
        nullptr,
        y,
        frame.numerics);
    if (!bias) {
      return;
    }
    auto* b = bias.floats(frame);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < out; ++c) {
        y[r * out + c] += b[uniform ? 0 : c];
      }
    }
  });
}

/// The axes of an einsum, by letter: which operands and the output have them.
struct Letters {
  std::string batch, rows, columns, contracted;  // both, x, y, summed
  std::array<int64_t, 128> size{};
};

/// Shape and strides of an operand whose axes are reordered to `order`.
StridedCopy reorder(
    const Letters& letters, const std::string& own, const std::string& order) {
  Shape sizes, strides;
  Shape shape;
  for (auto c : own) {
    shape.push_back(letters.size[c]);
  }
  auto from = strides_of(shape);
  for (auto c : order) {
    sizes.push_back(letters.size[c]);
    strides.push_back(from[own.find(c)]);
  }
  return StridedCopy(sizes, strides);
}

int64_t product_of(const Letters& letters, const std::string& names) {
  int64_t n = 1;
  for (auto c : names) {
    n *= letters.size[c];
  }
  return n;
}

struct Equation {
  std::string x, y, out;
};

Equation parse_equation(const Call& call) {
  auto text = call.text("equation", "");
  std::erase(text, ' ');
  auto comma = text.find(','), arrow = text.find("->");
  call.need(
      comma != text.npos && arrow != text.npos && comma < arrow,
      "equation \"" + text + "\" must read \"ab,bc->ac\"");
  Equation e{
      text.substr(0, comma),
      text.substr(comma + 1, arrow - comma - 1),
      text.substr(arrow + 2)};
  for (auto& names : {e.x, e.y, e.out}) {
    for (size_t i = 0; i < names.size(); ++i) {
      call.need(
          std::isalpha(static_cast<unsigned char>(names[i])) &&
              names.find(names[i], i + 1) == names.npos,
          "equation \"" + text + "\" must use each letter once an operand");
    }
  }
  return e;
}

Letters letters_of(
    const Call& call, const Equation& e, const Shape& x, const Shape& y) {
  call.need(
      e.x.size() == x.size() && e.y.size() == y.size(),
      "the equation's ranks differ from the operands'");
  Letters out;
  for (size_t i = 0; i < x.size(); ++i) {
    out.size[e.x[i]] = x[i];
  }
  for (size_t i = 0; i < y.size(); ++i) {
    auto c = e.y[i];
    bool shared = e.x.find(c) != e.x.npos;
    call.need(
        !shared || out.size[c] == y[i],
        std::string("axis ") + c + " has two sizes");
    out.size[c] = y[i];
  }
  for (auto c : e.out) {
    bool in_x = e.x.find(c) != e.x.npos, in_y = e.y.find(c) != e.y.npos;
    call.need(in_x || in_y, std::string("axis ") + c + " comes from nowhere");
    (in_x && in_y ? out.batch : in_x ? out.rows : out.columns) += c;
  }
  for (auto c : e.x + e.y) {
    if (e.out.find(c) != e.out.npos ||
        out.contracted.find(c) != out.contracted.npos) {
      continue;
    }
    call.need(
        e.x.find(c) != e.x.npos && e.y.find(c) != e.y.npos,
        std::string("axis ") + c + " is summed in one operand only");
    out.contracted += c;
  }
  return out;
}

LoweredOp einsum(const Call& call) {
  auto& values = call.list("values");
  call.need(values.size() == 2, "values must be two operands");
  auto x = values[0], y = values[1], z = call.results[0];
  need_floats(call, x, y);
  auto e = parse_equation(call);
  auto letters = letters_of(call, e, x.shape(), y.shape());
  auto batch = product_of(letters, letters.batch);
  Product p{
      product_of(letters, letters.rows),
      product_of(letters, letters.columns),
      product_of(letters, letters.contracted)};
  auto x_copy =
      reorder(letters, e.x, letters.batch + letters.rows + letters.contracted);
  auto y_copy = reorder(
      letters, e.y, letters.batch + letters.contracted + letters.columns);
  auto z_copy =
      reorder(letters, letters.batch + letters.rows + letters.columns, e.out);
  Shape shape;
  for (auto c : e.out) {
    shape.push_back(letters.size[c]);
  }
  LoweredOp lowered({{x.type.dtype, shape}});
  auto z_size = elements(shape);
  lowered.scratch_bytes = (x.size() + y.size() + z_size) * element_size;
  lowered.kernel = [=](const Frame& frame) {
    auto* a = reinterpret_cast<float*>(frame.scratch);
    auto *b = a + x.size(), *c = b + y.size();
    auto ints = [](float* p) { return reinterpret_cast<int32_t*>(p); };
    x_copy.run(x.ints(frame), ints(a));
    y_copy.run(y.ints(frame), ints(b));
    for (int64_t i = 0; i < batch; ++i) {
      multiply(
          p,
          a + i * p.m * p.k,
          b + i * p.k * p.n,
          nullptr,
          c + i * p.m * p.n,
          frame.numerics);
    }
    z_copy.run(ints(c), z.ints(frame));
  };
  return lowered;
}

constexpr Op table[] = {
    {"matmul", matmul, "iOS15 linear: matmul"},
    {"linear", linear, "iOS15 linear: linear"},
    {"einsum", einsum, "iOS15 linear: einsum"},
};

}  // namespace

std::span<const Op> matmul_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
