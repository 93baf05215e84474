// Operations that move values or only rename their axes.
#include <cstring>

#include "device/emulated/broadcast.h"
#include "device/emulated/copy.h"

namespace mlx_ane::emulated {

namespace {

Built identity(const Call& call) {
  auto& x = call.operand("x");
  return Built::view(x, x.shape());
}

// At most one -1 (the rest), 0 keeps the input's size at that position.
Built reshape(const Call& call) {
  auto& x = call.operand("x");
  auto shape = call.integers("shape");
  int64_t known = 1;
  int64_t* rest = nullptr;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 0 && d < x.shape().size()) {
      shape[d] = x.shape()[d];
    }
    if (shape[d] == -1) {
      call.need(rest == nullptr, "shape has more than one -1");
      rest = &shape[d];
    } else {
      call.need(shape[d] >= 0, "shape has a negative size");
      known *= shape[d];
      call.need(known <= int64_t{1} << 40, "shape is too large");
    }
  }
  if (rest) {
    call.need(known > 0, "-1 beside a zero size says nothing");
    *rest = x.size() / known;
  }
  call.need(
      elements(shape) == x.size(),
      "x " + to_string(x.shape()) + " does not have the elements of " +
          to_string(shape));
  return Built::view(x, shape);
}

Built transpose(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  auto perm = call.integers("perm");
  auto rank = x.shape().size();
  call.need(perm.size() == rank, "perm must name every axis of x");
  std::vector<bool> seen(rank);
  auto from = strides_of(x.shape());
  Shape shape, strides;
  for (auto& p : perm) {
    p = call.axis(p, rank);
    call.need(!seen[p], "perm names an axis twice");
    seen[p] = true;
    shape.push_back(x.shape()[p]);
    strides.push_back(from[p]);
  }
  Built built({{x.type.dtype, shape}});
  built.moves = true;
  auto copy = StridedCopy(shape, strides);
  built.kernel = [=](const Frame& frame) {
    copy.run(x.ints(frame), z.ints(frame));
  };
  return built;
}

// To integers, values are cut towards zero, as in NumPy's astype.
Built cast(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  auto name = call.text("dtype", "");
  auto dtype = mil::dtype_named(name);
  call.need(dtype && *dtype != DType::string, "dtype \"" + name + "\" unknown");
  auto from = x.type.dtype;
  auto n = x.size();
  Built built({{*dtype, x.shape()}});
  if (from == *dtype || (from == DType::fp16 && *dtype == DType::fp32)) {
    built.view_of = x.slot;
  } else if (mil::is_float(from) && mil::is_float(*dtype)) {
    built.kernel = [=](const Frame& frame) {
      std::memcpy(z.ints(frame), x.ints(frame), n * element_size);
    };
  } else if (mil::is_float(from)) {
    built.kernel = [=, to = *dtype](const Frame& frame) {
      to_integers(x.floats(frame), to, z.ints(frame), n);
    };
  } else if (mil::is_float(*dtype)) {
    built.kernel = [=](const Frame& frame) {
      auto* a = x.ints(frame);
      auto* out = z.floats(frame);
      for (int64_t i = 0; i < n; ++i) {
        out[i] = static_cast<float>(a[i]);
      }
    };
  } else {
    built.kernel = [=, to = *dtype](const Frame& frame) {
      auto* a = x.ints(frame);
      auto* out = z.ints(frame);
      for (int64_t i = 0; i < n; ++i) {
        out[i] = wrap(a[i], to);
      }
    };
  }
  return built;
}

constexpr Op table[] = {
    {"identity", identity, "iOS15 tensor_operation: identity"},
    {"reshape", reshape, "iOS15 tensor_transformation: reshape"},
    {"transpose", transpose, "iOS15 tensor_transformation: transpose"},
    {"cast", cast, "iOS15 elementwise_unary: cast"},
};

} // namespace

std::span<const Op> shape_ops() {
  return table;
}

} // namespace mlx_ane::emulated
