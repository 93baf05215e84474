// Gathers and scatters. Negative indices count from the end; others outside the
// axis are clamped when gathered and skipped when scattered.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "device/emulated/op.h"

namespace mlx_ane::emulated {

namespace {

const Operand& index_operand(const Call& call) {
  auto& indices = call.operand("indices");
  call.need(
      !mil::is_float(indices.type.dtype) && indices.type.dtype != DType::string,
      "indices must be integers");
  return indices;
}

int64_t clamped(int64_t index, int64_t size) {
  return std::clamp<int64_t>(index < 0 ? index + size : index, 0, size - 1);
}

int64_t product(Shape::const_iterator begin, Shape::const_iterator end) {
  int64_t n = 1;
  for (; begin != end; ++begin) {
    n *= *begin;
  }
  return n;
}

// x (B..., outer..., axis, inner...), indices (B..., I...)
// -> (B..., outer..., I..., inner...)
LoweredOp gather(const Call& call) {
  auto x = call.operand("x"), indices = index_operand(call),
       z = call.results[0];
  auto axis = call.axis(call.integer("axis", 0), x.shape().size());
  auto batch_dims = call.integer("batch_dims", 0);
  auto &xs = x.shape(), &is = indices.shape();
  call.need(
      batch_dims >= 0 && batch_dims <= axis &&
          batch_dims <= static_cast<int64_t>(is.size()) &&
          std::equal(xs.begin(), xs.begin() + batch_dims, is.begin()),
      "batch_dims must be axes that x and indices share");
  Shape shape(xs.begin(), xs.begin() + axis);
  shape.insert(shape.end(), is.begin() + batch_dims, is.end());
  shape.insert(shape.end(), xs.begin() + axis + 1, xs.end());
  auto batches = product(xs.begin(), xs.begin() + batch_dims);
  auto outer = product(xs.begin() + batch_dims, xs.begin() + axis);
  auto inner = product(xs.begin() + axis + 1, xs.end());
  auto size = xs[axis], picks = product(is.begin() + batch_dims, is.end());
  call.need(size > 0 || picks == 0, "x is empty along the axis");
  LoweredOp lowered({{x.type.dtype, shape}});
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) {
    auto* out = z.ints(frame);
    for (int64_t bo = 0; bo < batches * outer; ++bo) {
      auto* picked = indices.ints(frame) + bo / outer * picks;
      auto* from = x.ints(frame) + bo * size * inner;
      for (int64_t i = 0; i < picks; ++i, out += inner) {
        std::memcpy(
            out, from + clamped(picked[i], size) * inner, inner * element_size);
      }
    }
  };
  return lowered;
}

/// x and indices of one shape but along `axis`.
struct Along {
  int64_t outer, size, picks, inner;

  Along(const Call& call, const Operand& x, const Operand& indices) {
    auto rank = x.shape().size();
    auto axis = call.axis(call.integer("axis", 0), rank);
    call.need(indices.shape().size() == rank, "indices must have x's rank");
    for (size_t d = 0; d < rank; ++d) {
      call.need(
          static_cast<int64_t>(d) == axis || indices.shape()[d] == x.shape()[d],
          "indices must have x's shape but along the axis");
    }
    auto& xs = x.shape();
    outer = product(xs.begin(), xs.begin() + axis);
    inner = product(xs.begin() + axis + 1, xs.end());
    size = xs[axis];
    picks = indices.shape()[axis];
    call.need(size > 0 || picks == 0, "x is empty along the axis");
  }
};

LoweredOp gather_along_axis(const Call& call) {
  auto x = call.operand("x"), indices = index_operand(call),
       z = call.results[0];
  Along a(call, x, indices);
  LoweredOp lowered({{x.type.dtype, indices.shape()}});
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) {
    auto *in = x.ints(frame), *out = z.ints(frame);
    auto* picked = indices.ints(frame);
    for (int64_t o = 0; o < a.outer; ++o) {
      for (int64_t i = 0; i < a.picks * a.inner; ++i) {
        auto at = o * a.picks * a.inner + i;
        out[at] =
            in[(o * a.size + clamped(picked[at], a.size)) * a.inner +
               i % a.inner];
      }
    }
  };
  return lowered;
}

/// Indices whose last axis addresses the first axes of data.
struct Points {
  Shape sizes, strides;  // of the addressed axes
  int64_t batches, count, depth, inner, plane;

  Points(
      const Call& call,
      const Shape& data,
      const Shape& indices,
      int64_t batch_dims) {
    call.need(
        !indices.empty() && batch_dims >= 0 &&
            batch_dims < static_cast<int64_t>(indices.size()) &&
            batch_dims <= static_cast<int64_t>(data.size()) &&
            std::equal(
                data.begin(), data.begin() + batch_dims, indices.begin()),
        "batch_dims must be axes that both operands share");
    depth = indices.back();
    call.need(
        depth >= 0 && batch_dims + depth <= static_cast<int64_t>(data.size()),
        "indices address more axes than there are");
    auto first = data.begin() + batch_dims;
    sizes.assign(first, first + depth);
    auto all = strides_of(data);
    strides.assign(all.begin() + batch_dims, all.begin() + batch_dims + depth);
    batches = product(data.begin(), first);
    plane = product(first, data.end());
    inner = product(first + depth, data.end());
    count = product(indices.begin() + batch_dims, indices.end() - 1);
  }

  /// Where a point begins in its batch, or -1 if it lies outside.
  int64_t find(const int32_t* point, bool clamp) const {
    int64_t at = 0;
    for (int64_t d = 0; d < depth; ++d) {
      int64_t index = point[d] < 0 ? point[d] + sizes[d] : point[d];
      if (clamp) {
        index = std::clamp<int64_t>(index, 0, sizes[d] - 1);
      } else if (index < 0 || index >= sizes[d]) {
        return -1;
      }
      at += index * strides[d];
    }
    return at;
  }
};

LoweredOp gather_nd(const Call& call) {
  auto x = call.operand("x"), indices = index_operand(call),
       z = call.results[0];
  Points p(call, x.shape(), indices.shape(), call.integer("batch_dims", 0));
  call.need(x.size() > 0, "x is empty");
  Shape shape(indices.shape().begin(), indices.shape().end() - 1);
  auto used = call.integer("batch_dims", 0) + p.depth;
  shape.insert(shape.end(), x.shape().begin() + used, x.shape().end());
  LoweredOp lowered({{x.type.dtype, shape}});
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) {
    auto* out = z.ints(frame);
    auto* point = indices.ints(frame);
    for (int64_t i = 0; i < p.batches * p.count; ++i) {
      auto* from = x.ints(frame) + i / p.count * p.plane + p.find(point, true);
      std::memcpy(out, from, p.inner * element_size);
      out += p.inner;
      point += p.depth;
    }
  };
  return lowered;
}

enum class Mode { add, div, max, min, mul, sub, update };

Mode mode_of(const Call& call, const std::string& otherwise) {
  auto name = call.text("mode", otherwise);
  constexpr const char* names[] = {
      "add", "div", "max", "min", "mul", "sub", "update"};
  for (int i = 0; i < 7; ++i) {
    if (name == names[i]) {
      return static_cast<Mode>(i);
    }
  }
  call.fail(
      "mode \"" + name +
      "\" must be one of add, div, max, min, mul, sub, update");
}

template <class T>
T combine(Mode mode, T old, T value) {
  switch (mode) {
    case Mode::add:
      return old + value;
    case Mode::sub:
      return old - value;
    case Mode::mul:
      return old * value;
    case Mode::div:
      return value == T{} && !std::is_floating_point_v<T> ? T{} : old / value;
    case Mode::max:
      return std::max(old, value);
    case Mode::min:
      return std::min(old, value);
    default:
      return value;
  }
}

/// Result = data with `store(put)` applied, put(position, update position).
template <class Store>
LoweredOp scatter_kernel(const Call& call, Mode mode, Store store) {
  auto data = call.operand("data"), updates = call.operand("updates"),
       z = call.results[0];
  call.need(
      updates.type.dtype == data.type.dtype && data.type.dtype != DType::string,
      "updates and data must be of one type");
  bool floats = mil::is_float(data.type.dtype);
  LoweredOp lowered({data.type});
  lowered.kernel = [=, n = data.size()](const Frame& frame) {
    std::memcpy(z.ints(frame), data.ints(frame), n * element_size);
    store(frame, [&](int64_t to, int64_t from, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        if (floats) {
          auto& old = z.floats(frame)[to + i];
          old = combine(mode, old, updates.floats(frame)[from + i]);
        } else {
          // Through int64: sums and products of int32 must not overflow.
          auto& old = z.ints(frame)[to + i];
          old = static_cast<int32_t>(
              combine<int64_t>(mode, old, updates.ints(frame)[from + i]));
        }
      }
    });
  };
  return lowered;
}

LoweredOp scatter(const Call& call) {
  auto data = call.operand("data"), indices = index_operand(call);
  auto& updates = call.operand("updates");
  auto& ds = data.shape();
  auto axis = call.axis(call.integer("axis", 0), ds.size());
  Shape wanted(ds.begin(), ds.begin() + axis);
  wanted.insert(wanted.end(), indices.shape().begin(), indices.shape().end());
  wanted.insert(wanted.end(), ds.begin() + axis + 1, ds.end());
  call.need(
      updates.shape() == wanted,
      "updates are " + to_string(updates.shape()) + ", but must be " +
          to_string(wanted));
  auto outer = product(ds.begin(), ds.begin() + axis);
  auto inner = product(ds.begin() + axis + 1, ds.end());
  auto size = ds[axis], picks = indices.size();
  return scatter_kernel(
      call, mode_of(call, "add"), [=](const Frame& frame, auto put) {
        for (int64_t o = 0; o < outer; ++o) {
          for (int64_t i = 0; i < picks; ++i) {
            int64_t to = indices.ints(frame)[i];
            to = to < 0 ? to + size : to;
            if (to >= 0 && to < size) {
              put((o * size + to) * inner, (o * picks + i) * inner, inner);
            }
          }
        }
      });
}

LoweredOp scatter_along_axis(const Call& call) {
  auto data = call.operand("data"), indices = index_operand(call);
  call.need(
      call.operand("updates").shape() == indices.shape(),
      "updates and indices must be of one shape");
  Along a(call, data, indices);
  return scatter_kernel(
      call, mode_of(call, "add"), [=](const Frame& frame, auto put) {
        for (int64_t o = 0; o < a.outer; ++o) {
          for (int64_t i = 0; i < a.picks * a.inner; ++i) {
            auto from = o * a.picks * a.inner + i;
            int64_t to = indices.ints(frame)[from];
            to = to < 0 ? to + a.size : to;
            if (to >= 0 && to < a.size) {
              put((o * a.size + to) * a.inner + i % a.inner, from, 1);
            }
          }
        }
      });
}

LoweredOp scatter_nd(const Call& call) {
  auto data = call.operand("data"), indices = index_operand(call);
  Points p(call, data.shape(), indices.shape(), 0);
  Shape wanted(indices.shape().begin(), indices.shape().end() - 1);
  wanted.insert(
      wanted.end(), data.shape().begin() + p.depth, data.shape().end());
  call.need(
      call.operand("updates").shape() == wanted,
      "updates must be " + to_string(wanted));
  return scatter_kernel(
      call, mode_of(call, "add"), [=](const Frame& frame, auto put) {
        for (int64_t i = 0; i < p.count; ++i) {
          auto to = p.find(indices.ints(frame) + i * p.depth, false);
          if (to >= 0) {
            put(to, i * p.inner, p.inner);
          }
        }
      });
}

constexpr Op table[] = {
    {"gather", gather, "iOS15 scatter_gather: gather"},
    {"gather_along_axis",
     gather_along_axis,
     "iOS15 scatter_gather: gather_along_axis"},
    {"gather_nd", gather_nd, "iOS15 scatter_gather: gather_nd"},
    {"scatter", scatter, "iOS15 scatter_gather: scatter"},
    {"scatter_along_axis",
     scatter_along_axis,
     "iOS15 scatter_gather: scatter_along_axis"},
    {"scatter_nd", scatter_nd, "iOS15 scatter_gather: scatter_nd"},
};

}  // namespace

std::span<const Op> gather_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
