// Operations on shapes (reshape, transpose and the like), and cast.
#include <algorithm>
#include <cstring>

#include "device/emulated/copy.h"

namespace mlx_ane::emulated {

namespace {

LoweredOp identity(const Call& call) {
  auto& x = call.operand("x");
  return LoweredOp::view(x, x.shape());
}

// The layout of a surface matters where surfaces are read and written only.
LoweredOp tensor_buffer_to_tensor(const Call& call) {
  auto& x = call.operand("input");
  call.need(x.type.is_buffer(), "input must be a tensor_buffer");
  return LoweredOp::view(x, x.shape());
}

LoweredOp tensor_to_tensor_buffer(const Call& call) {
  auto& x = call.operand("input");
  auto lowered = LoweredOp::view(x, x.shape());
  auto& type = lowered.types[0];
  auto& declared = call.results[0].type;
  type.strides = call.integers("strides", declared.strides);
  type.interleave_factors =
      call.integers("interleave_factors", declared.interleave_factors);
  call.need(
      type.strides.size() == x.shape().size() &&
          type.interleave_factors.size() == x.shape().size(),
      "strides and interleave_factors need one number an axis");
  return lowered;
}

// At most one -1 (the rest), 0 keeps the input's size at that position.
LoweredOp reshape_to(const Call& call, const Operand& x, Shape shape) {
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
  return LoweredOp::view(x, shape);
}

LoweredOp reshape(const Call& call) {
  return reshape_to(call, call.operand("x"), call.integers("shape"));
}

// Axes [begin, end) of x become those of the reference tensors.
LoweredOp reshape_like(const Call& call) {
  auto& x = call.operand("x");
  auto& references = call.list("ref_tensors");
  auto begins = call.integers("begins"), ends = call.integers("ends");
  auto mask =
      call.integers("end_masks", std::vector<int64_t>(references.size(), 0));
  call.need(
      begins.size() == references.size() && ends.size() == references.size() &&
          mask.size() == references.size(),
      "begins, ends and end_masks must have one value a reference tensor");
  Shape shape;
  for (size_t i = 0; i < references.size(); ++i) {
    auto& own = references[i].shape();
    auto rank = static_cast<int64_t>(own.size());
    auto begin = begins[i] < 0 ? begins[i] + rank : begins[i];
    auto end = mask[i] ? rank : ends[i] < 0 ? ends[i] + rank : ends[i];
    call.need(
        begin >= 0 && begin <= end && end <= rank,
        "begins or ends are outside");
    shape.insert(shape.end(), own.begin() + begin, own.begin() + end);
  }
  return reshape_to(call, x, shape);
}

LoweredOp expand_dims(const Call& call) {
  auto& x = call.operand("x");
  auto values = call.integers("axes");
  auto rank = x.shape().size() + values.size();
  auto axes = call.axes("axes", rank);
  auto shape = x.shape();
  for (auto axis : axes) {
    shape.insert(shape.begin() + axis, 1);
  }
  return LoweredOp::view(x, shape);
}

LoweredOp squeeze(const Call& call) {
  auto& x = call.operand("x");
  bool all = !call.has("axes");
  auto axes = call.axes("axes", x.shape().size());
  Shape shape;
  for (size_t d = 0; d < x.shape().size(); ++d) {
    bool named = std::find(axes.begin(), axes.end(), static_cast<int64_t>(d)) !=
                 axes.end();
    if (named && x.shape()[d] == 1) {
      continue;
    }
    call.need(
        all || !named,
        "axis " + std::to_string(d) + " of x " + to_string(x.shape()) +
            " is not 1");
    shape.push_back(x.shape()[d]);
  }
  return LoweredOp::view(x, shape);
}

// Axes before `axis` become one, and so do the others.
LoweredOp flatten2d(const Call& call) {
  auto& x = call.operand("x");
  auto rank = static_cast<int64_t>(x.shape().size());
  auto axis = call.integer("axis", 1);
  axis = axis < 0 ? axis + rank : axis;
  call.need(axis >= 0 && axis <= rank, "axis is outside x");
  int64_t rows = 1, cols = 1;
  for (int64_t d = 0; d < rank; ++d) {
    (d < axis ? rows : cols) *= x.shape()[d];
  }
  return LoweredOp::view(x, {rows, cols});
}

LoweredOp shape_op(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  auto rank = static_cast<int64_t>(x.shape().size());
  LoweredOp lowered({{DType::int32, {rank}}}, [=](const Frame& frame) {
    std::copy(x.shape().begin(), x.shape().end(), z.ints(frame));
  });
  lowered.known = true;
  return lowered;
}

/// x seen as `split` (its axes cut), permuted, then given the shape `out`.
LoweredOp permuted(
    const Call& call,
    const Shape& split,
    const std::vector<int64_t>& perm,
    Shape out) {
  auto x = call.operand("x"), z = call.results[0];
  auto from = strides_of(split);
  Shape sizes, strides;
  for (auto p : perm) {
    sizes.push_back(split[p]);
    strides.push_back(from[p]);
  }
  StridedCopy copy(sizes, strides);
  auto columns = columns_of(out);
  auto lowered = LoweredOp::by_rows(
      {x.type.dtype, std::move(out)},
      [=](const Frame& frame, int64_t first, int64_t last) {
        copy.run(x.ints(frame), z.ints(frame), first * columns, last * columns);
      });
  lowered.moves = true;
  lowered.gathers = true;
  return lowered;
}

LoweredOp transpose(const Call& call) {
  auto& shape = call.operand("x").shape();
  auto perm = call.integers("perm");
  call.need(perm.size() == shape.size(), "perm must name every axis of x");
  std::vector<bool> seen(shape.size());
  Shape out;
  for (auto& p : perm) {
    p = call.axis(p, shape.size());
    call.need(!seen[p], "perm names an axis twice");
    seen[p] = true;
    out.push_back(shape[p]);
  }
  return permuted(call, shape, perm, out);
}

/// x (N, C, H, W) and the block of a call, checked.
struct Blocks {
  int64_t n, c, h, w, b;

  Blocks(const Call& call, const char* name) {
    auto& shape = call.operand("x").shape();
    call.need(shape.size() == 4, "x must be (N, C, H, W)");
    n = shape[0], c = shape[1], h = shape[2], w = shape[3];
    b = call.integer(name);
    call.need(b >= 1 && b <= 1 << 15, std::string(name) + " must be positive");
  }
};

LoweredOp depth_to_space(const Call& call) {
  Blocks s(call, "block_size");
  call.need(s.c % (s.b * s.b) == 0, "channels must divide into blocks");
  auto c = s.c / (s.b * s.b);
  return permuted(
      call,
      {s.n, s.b, s.b, c, s.h, s.w},
      {0, 3, 4, 1, 5, 2},
      {s.n, c, s.h * s.b, s.w * s.b});
}

LoweredOp space_to_depth(const Call& call) {
  Blocks s(call, "block_size");
  call.need(s.h % s.b == 0 && s.w % s.b == 0, "x must divide into blocks");
  return permuted(
      call,
      {s.n, s.c, s.h / s.b, s.b, s.w / s.b, s.b},
      {0, 3, 5, 1, 2, 4},
      {s.n, s.c * s.b * s.b, s.h / s.b, s.w / s.b});
}

LoweredOp pixel_shuffle(const Call& call) {
  Blocks s(call, "upscale_factor");
  call.need(s.c % (s.b * s.b) == 0, "channels must divide into blocks");
  auto c = s.c / (s.b * s.b);
  return permuted(
      call,
      {s.n, c, s.b, s.b, s.h, s.w},
      {0, 1, 4, 2, 5, 3},
      {s.n, c, s.h * s.b, s.w * s.b});
}

LoweredOp pixel_unshuffle(const Call& call) {
  Blocks s(call, "downscale_factor");
  call.need(s.h % s.b == 0 && s.w % s.b == 0, "x must divide into blocks");
  return permuted(
      call,
      {s.n, s.c, s.h / s.b, s.b, s.w / s.b, s.b},
      {0, 1, 3, 5, 2, 4},
      {s.n, s.c * s.b * s.b, s.h / s.b, s.w / s.b});
}

// To integers, values are cut towards zero and saturate.
Kernel cast_kernel(Operand x, Operand z, DType to, int64_t n) {
  bool from_float = mil::is_float(x.type.dtype), to_float = mil::is_float(to);
  if (from_float && to_float) {
    return [=](const Frame& frame) {
      std::memcpy(z.ints(frame), x.ints(frame), n * element_size);
    };
  }
  if (from_float) {
    return [=](const Frame& frame) {
      to_integers(x.floats(frame), to, z.ints(frame), n);
    };
  }
  if (to_float) {
    return [=](const Frame& frame) {
      auto* a = x.ints(frame);
      std::transform(a, a + n, z.floats(frame), [](int32_t v) {
        return static_cast<float>(v);
      });
    };
  }
  return [=](const Frame& frame) {
    auto* a = x.ints(frame);
    std::transform(
        a, a + n, z.ints(frame), [=](int32_t v) { return wrap(v, to); });
  };
}

LoweredOp cast_to(const Call& call, const Operand& x, const std::string& name) {
  auto to = mil::dtype_named(name);
  auto from = x.type.dtype;
  call.need(
      to && *to != DType::string && from != DType::string,
      "dtype \"" + name + "\" is not a type of numbers");
  LoweredOp lowered({{*to, x.shape()}});
  if (from == *to || (from == DType::fp16 && *to == DType::fp32)) {
    lowered.view_of = x.slot;
  } else {
    lowered.kernel = cast_kernel(x, call.results[0], *to, x.size());
  }
  return lowered;
}

LoweredOp cast(const Call& call) {
  return cast_to(call, call.operand("x"), call.text("dtype", ""));
}

LoweredOp constexpr_cast(const Call& call) {
  return cast_to(
      call, call.operand("source_val"), call.text("output_dtype", ""));
}

constexpr Op table[] = {
    {"cast", cast, "iOS15 elementwise_unary: cast"},
    {"constexpr_cast", constexpr_cast, "iOS16 constexpr_ops: constexpr_cast"},
    {"depth_to_space",
     depth_to_space,
     "iOS15 tensor_transformation: depth_to_space"},
    {"expand_dims", expand_dims, "iOS15 tensor_transformation: expand_dims"},
    {"flatten2d", flatten2d, "iOS15 tensor_operation: flatten2d"},
    {"identity", identity, "iOS15 tensor_operation: identity"},
    {"pixel_shuffle",
     pixel_shuffle,
     "iOS15 tensor_transformation: pixel_shuffle"},
    {"pixel_unshuffle",
     pixel_unshuffle,
     "iOS16 tensor_transformation: pixel_unshuffle"},
    {"reshape", reshape, "iOS15 tensor_transformation: reshape"},
    {"reshape_like", reshape_like, "iOS16 tensor_transformation: reshape_like"},
    {"shape", shape_op, "iOS15 tensor_operation: shape"},
    {"space_to_depth",
     space_to_depth,
     "iOS15 tensor_transformation: space_to_depth"},
    {"squeeze", squeeze, "iOS15 tensor_transformation: squeeze"},
    {"tensor_buffer_to_tensor",
     tensor_buffer_to_tensor,
     "splash: tensor_buffer_to_tensor"},
    {"tensor_to_tensor_buffer",
     tensor_to_tensor_buffer,
     "splash: tensor_to_tensor_buffer"},
    {"transpose", transpose, "iOS15 tensor_transformation: transpose"},
};

}  // namespace

std::span<const Op> shape_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
