// Operations that make, order or pad values: fill, range, one_hot, pad, sort.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "device/emulated/reduction_axes.h"

namespace mlx_ane::emulated {

namespace {

/// The four bytes of a scalar constant, float or int32.
int32_t scalar_bits(const Call& call, const Operand& value) {
  call.need(
      value.literal && value.size() == 1 && value.type.dtype != DType::string,
      "the value must be a constant scalar");
  int32_t bits;
  std::memcpy(
      &bits,
      value.literal->floats.empty()
          ? static_cast<const void*>(value.literal->ints.data())
          : value.literal->floats.data(),
      sizeof(bits));
  return bits;
}

LoweredOp filled(const Call& call, DType dtype, Shape shape, int32_t bits) {
  auto z = call.results[0];
  auto n = elements(shape);
  return LoweredOp({{dtype, std::move(shape)}}, [=](const Frame& frame) {
    std::fill_n(z.ints(frame), n, bits);
  });
}

LoweredOp fill(const Call& call) {
  auto shape = call.integers("shape");
  if (!call.has("value")) {
    return filled(call, DType::fp32, shape, 0);
  }
  auto& value = call.operand("value");
  return filled(call, value.type.dtype, shape, scalar_bits(call, value));
}

LoweredOp fill_like(const Call& call) {
  auto& value = call.operand("value");
  return filled(
      call,
      value.type.dtype,
      call.operand("ref_tensor").shape(),
      scalar_bits(call, value));
}

// ceil((end - start) / step) values
LoweredOp range_1d(const Call& call) {
  auto z = call.results[0];
  double start = call.number("start"), end = call.number("end");
  double step = call.number("step");
  auto dtype = call.operand("start").type.dtype;
  call.need(step != 0, "step must not be 0");
  auto n = std::max(std::ceil((end - start) / step), 0.0);
  call.need(n <= 1 << 30, "the range is too long");
  auto count = static_cast<int64_t>(n);
  bool floats = mil::is_float(dtype);
  return LoweredOp({{dtype, {count}}}, [=](const Frame& frame) {
    for (int64_t i = 0; i < count; ++i) {
      auto value = start + static_cast<double>(i) * step;
      if (floats) {
        z.floats(frame)[i] = static_cast<float>(value);
      } else {
        z.ints(frame)[i] = static_cast<int32_t>(value);
      }
    }
  });
}

LoweredOp one_hot(const Call& call) {
  auto indices = call.operand("indices"), z = call.results[0];
  call.need(!mil::is_float(indices.type.dtype), "indices must be integers");
  auto size = call.integer("one_hot_vector_size");
  call.need(size >= 1, "one_hot_vector_size must be positive");
  auto axis = call.axis(call.integer("axis", -1), indices.shape().size() + 1);
  auto dtype = DType::int32;
  int32_t on = 1, off = 0;
  for (auto [name, bits] : {std::pair("on_value", &on), {"off_value", &off}}) {
    if (call.has(name)) {
      dtype = call.operand(name).type.dtype;
      *bits = scalar_bits(call, call.operand(name));
    }
  }
  auto shape = indices.shape();
  shape.insert(shape.begin() + axis, size);
  auto inner = strides_of(shape)[axis];
  return LoweredOp(
      {{dtype, shape}}, [=, n = indices.size()](const Frame& frame) {
        auto* out = z.ints(frame);
        std::fill_n(out, n * size, off);
        for (int64_t i = 0; i < n; ++i) {
          auto index = indices.ints(frame)[i];
          if (index >= 0 && index < size) {
            out[i / inner * size * inner + index * inner + i % inner] = on;
          }
        }
      });
}

// Keeps what lies within `lower` below and `upper` above the diagonal; -1: all.
LoweredOp band_part(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  auto rank = x.shape().size();
  call.need(rank >= 2, "x must be a matrix at least");
  auto lower = call.integer("lower", -1), upper = call.integer("upper", -1);
  auto rows = x.shape()[rank - 2], cols = x.shape()[rank - 1];
  LoweredOp lowered({x.type});
  lowered.moves = true;
  lowered.kernel = [=, n = x.size()](const Frame& frame) {
    for (int64_t i = 0; i < n; ++i) {
      auto r = i / cols % rows, c = i % cols;
      bool keep =
          (lower < 0 || r - c <= lower) && (upper < 0 || c - r <= upper);
      z.ints(frame)[i] = keep ? x.ints(frame)[i] : 0;
    }
  };
  return lowered;
}

LoweredOp cumsum(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  auto axis = call.axis(call.integer("axis", 0), x.shape().size());
  bool exclusive = call.flag("exclusive", false);
  bool backwards = call.flag("reverse", false);
  bool floats = mil::is_float(x.type.dtype);
  ReductionAxes reduction(x.shape(), {axis});
  auto stride = strides_of(x.shape())[axis], n = x.shape()[axis];
  return LoweredOp({x.type}, [=](const Frame& frame) {
    reduction.each([&](int64_t, int64_t start) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        auto p = start + (backwards ? n - 1 - i : i) * stride;
        auto value = floats ? x.floats(frame)[p] : x.ints(frame)[p];
        auto total = exclusive ? sum : sum + value;
        sum += value;
        if (floats) {
          z.floats(frame)[p] = static_cast<float>(total);
        } else {
          z.ints(frame)[p] = static_cast<int32_t>(static_cast<int64_t>(total));
        }
      }
    });
  });
}

/// Positions along an axis in the order of their values; ties keep their order.
class Sorter {
 public:
  Sorter(const Operand& x, int64_t axis, bool ascending)
      : x_(x),
        ascending_(ascending),
        reduction_(x.shape(), {axis}),
        stride_(strides_of(x.shape())[axis]),
        order_(x.shape()[axis]) {
  }

  /// body(line, order): order holds positions along the axis.
  template <class Body>
  void each(const Frame& frame, Body&& body) {
    bool floats = mil::is_float(x_.type.dtype);
    reduction_.each([&](int64_t line, int64_t start) {
      std::iota(order_.begin(), order_.end(), 0);
      auto value = [&](int32_t i) {
        auto p = start + i * stride_;
        double v = floats ? x_.floats(frame)[p] : x_.ints(frame)[p];
        return std::isnan(v) ? -INFINITY : v;  // keeps the order strict
      };
      std::stable_sort(order_.begin(), order_.end(), [&](auto a, auto b) {
        return ascending_ ? value(a) < value(b) : value(a) > value(b);
      });
      body(line, start, order_);
    });
  }
  int64_t stride() const {
    return stride_;
  }

 private:
  Operand x_;
  bool ascending_;
  ReductionAxes reduction_;
  int64_t stride_;
  std::vector<int32_t> order_;
};

LoweredOp argsort(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  auto axis = call.axis(call.integer("axis", -1), x.shape().size());
  Sorter sorter(x, axis, call.flag("ascending", false));
  return LoweredOp(
      {{DType::int32, x.shape()}}, [=](const Frame& frame) mutable {
        sorter.each(frame, [&](int64_t, int64_t start, auto& order) {
          for (size_t i = 0; i < order.size(); ++i) {
            z.ints(frame)[start + static_cast<int64_t>(i) * sorter.stride()] =
                order[i];
          }
        });
      });
}

LoweredOp topk(const Call& call) {
  auto x = call.operand("x");
  auto results = call.results;
  auto rank = x.shape().size();
  auto axis = call.axis(call.integer("axis", -1), rank);
  auto k = call.integer("k", 1);
  k = k == -1 ? x.shape()[axis] : k;
  call.need(k >= 0 && k <= x.shape()[axis], "k is outside the axis");
  auto name = call.text("output_indices_dtype", "int32");
  auto dtype = mil::dtype_named(name);
  call.need(
      dtype && mil::is_integer(*dtype),
      "output_indices_dtype must be an integer type");
  bool indices = call.flag("return_indices", true);
  call.need(
      results.size() == (indices ? 2u : 1u),
      "results must match return_indices");
  auto shape = x.shape();
  shape[axis] = k;
  auto inner = strides_of(x.shape())[axis];
  Sorter sorter(x, axis, call.flag("ascending", false));
  std::vector<Type> types = {{x.type.dtype, shape}};
  if (indices) {
    types.push_back({*dtype, shape});
  }
  LoweredOp lowered(types);
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) mutable {
    sorter.each(frame, [&](int64_t line, int64_t start, auto& order) {
      auto to = line / inner * k * inner + line % inner;
      for (int64_t i = 0; i < k; ++i, to += inner) {
        results[0].ints(frame)[to] = x.ints(frame)[start + order[i] * inner];
        if (indices) {
          results[1].ints(frame)[to] = order[i];
        }
      }
    });
  };
  return lowered;
}

/// Where padded position i takes its value from; -1 for the constant.
int64_t pad_source(int64_t i, int64_t size, const std::string& mode) {
  if (i >= 0 && i < size) {
    return i;
  }
  if (mode == "replicate") {
    return i < 0 ? 0 : size - 1;
  }
  if (mode == "reflect") {
    return i < 0 ? -i : 2 * size - 2 - i;
  }
  return -1;
}

/// The four bytes of constant_val in x's representation. Writers give fp32 for
/// an integer x as well.
int32_t pad_constant(const Call& call, const Operand& x) {
  if (!call.has("constant_val")) {
    return 0;
  }
  auto& value = call.operand("constant_val");
  bool floats = mil::is_float(x.type.dtype);
  if (floats == mil::is_float(value.type.dtype)) {
    return scalar_bits(call, value);
  }
  auto number = call.number("constant_val");
  if (!floats) {
    return static_cast<int32_t>(std::clamp(number, -2e9f, 2e9f));
  }
  int32_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  return bits;
}

/// A padded shape and, for each axis and position, the offset in x or -1.
struct Padding {
  Shape shape;
  std::vector<std::vector<int64_t>> sources;
};

// pad has two values for each of the last axes.
Padding padding(const Call& call, const Shape& x) {
  auto amounts = call.integers("pad");
  auto mode = call.text("mode", "constant");
  call.need(
      mode == "constant" || mode == "reflect" || mode == "replicate",
      "mode \"" + mode + "\" must be constant, reflect or replicate");
  auto rank = x.size(), padded = amounts.size() / 2;
  call.need(
      amounts.size() % 2 == 0 && padded <= rank,
      "pad must have two values an axis");
  auto strides = strides_of(x);
  Padding out{x, {}};
  for (size_t d = 0; d < rank; ++d) {
    bool used = d + padded >= rank;
    auto i = 2 * (d + padded - rank);
    auto before = used ? amounts[i] : 0, after = used ? amounts[i + 1] : 0;
    auto size = x[d], most = std::max(before, after);
    call.need(
        before >= 0 && after >= 0 && most <= 1 << 20 &&
            (mode != "reflect" || most < std::max<int64_t>(size, 1)) &&
            (mode != "replicate" || size > 0 || most == 0),
        "pad is out of range");
    out.shape[d] = size + before + after;
    auto& sources = out.sources.emplace_back();
    for (int64_t j = -before; j < size + after; ++j) {
      auto source = pad_source(j, size, mode);
      sources.push_back(source < 0 ? -1 : source * strides[d]);
    }
  }
  return out;
}

LoweredOp pad(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  auto [shape, sources] = padding(call, x.shape());
  auto constant = pad_constant(call, x);
  auto rank = shape.size();
  call.need(rank > 0, "x must not be a scalar");
  auto strides = strides_of(shape);
  auto cols = shape[rank - 1];
  LoweredOp lowered({{x.type.dtype, shape}});
  lowered.kernel = [=, shape = shape, sources = sources, n = elements(shape)](
                       const Frame& frame) {
    auto *in = x.ints(frame), *out = z.ints(frame);
    for (int64_t i = 0; i < n; i += cols) {
      int64_t row = 0;
      for (size_t d = 0; d + 1 < rank && row >= 0; ++d) {
        auto source = sources[d][i / strides[d] % shape[d]];
        row = source < 0 ? -1 : row + source;
      }
      for (int64_t c = 0; c < cols; ++c) {
        auto source = row < 0 ? -1 : sources[rank - 1][c];
        out[i + c] = source < 0 ? constant : in[row + source];
      }
    }
  };
  return lowered;
}

constexpr Op table[] = {
    {"argsort", argsort, "iOS15 tensor_operation: argsort"},
    {"band_part", band_part, "iOS15 tensor_operation: band_part"},
    {"cumsum", cumsum, "iOS15 tensor_operation: cumsum"},
    {"fill", fill, "iOS15 tensor_operation: fill"},
    {"fill_like", fill_like, "iOS16 tensor_operation: fill_like"},
    {"one_hot", one_hot, "iOS15 tensor_operation: one_hot"},
    {"pad", pad, "iOS15 tensor_operation: pad"},
    {"range_1d", range_1d, "iOS15 tensor_operation: range_1d"},
    {"topk", topk, "iOS15 tensor_operation: topk"},
};

}  // namespace

std::span<const Op> generate_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
