// Operations that cut, join, pad and repeat tensors.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "device/emulated/copy.h"
#include "mil/limits.h"
#include "mil/rules.h"

namespace mlx_ane::emulated {

namespace {

/// A view of x by offset and strides, copied into a dense result.
struct Cut {
  Shape shape, strides;
  int64_t offset = 0;
  bool shifted = false;  // starts within the last axis
};

// What the rule slice-width says of a slice at an offset of the last axis.
void saturate(float* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (std::fabs(values[i]) > mil::Limits::max_sliced) {
      values[i] = std::copysign(INFINITY, values[i]);
    }
  }
}

LoweredOp cut_kernel(const Call& call, const Cut& cut, Shape result) {
  auto x = call.operand("x"), z = call.results[0];
  bool narrow = cut.shifted && x.type.dtype == DType::fp16 &&
                mil::find_rule("slice-width")->applies_to(call.generation);
  auto columns = columns_of(result);
  StridedCopy copy(cut.shape, cut.strides);
  auto lowered = LoweredOp::by_rows(
      {x.type.dtype, std::move(result)},
      [=, offset = cut.offset](
          const Frame& frame, int64_t first, int64_t last) {
        auto begin = first * columns, end = last * columns;
        copy.run(x.ints(frame) + offset, z.ints(frame), begin, end);
        if (narrow && frame.numerics > Numerics::fast) {
          saturate(z.floats(frame) + begin, end - begin);
        }
      });
  lowered.moves = true;
  lowered.gathers = true;
  return lowered;
}

/// Elements start, start + step, ... before stop, as Python's slice does.
int64_t count(int64_t start, int64_t stop, int64_t step) {
  auto span = step > 0 ? stop - start : start - stop;
  auto stride = step > 0 ? step : -step;
  return span <= 0 ? 0 : (span + stride - 1) / stride;
}

/// What begin, end, stride and the masks of a call cut out of x, with Python's
/// rules, and its shape without the squeezed axes.
std::pair<Cut, Shape> index_cut(const Call& call) {
  auto& x = call.operand("x");
  auto rank = x.shape().size();
  auto values = [&](const char* name, int64_t otherwise) {
    auto out = call.integers(name, std::vector<int64_t>(rank, otherwise));
    call.need(out.size() == rank, std::string(name) + " must match x's rank");
    return out;
  };
  auto begin = call.integers("begin"), end = call.integers("end");
  call.need(
      begin.size() == rank && end.size() == rank,
      "begin and end must match x's rank");
  auto stride = values("stride", 1), begin_mask = values("begin_mask", 0);
  auto end_mask = values("end_mask", 0), squeeze = values("squeeze_mask", 0);
  auto from = strides_of(x.shape());
  Cut cut;
  Shape result;
  for (size_t d = 0; d < rank; ++d) {
    auto size = x.shape()[d], step = squeeze[d] ? 1 : stride[d];
    call.need(step != 0, "stride must not be 0");
    auto clamp = [&](int64_t v) {
      v = v < 0 ? v + size : v;
      return step > 0 ? std::clamp<int64_t>(v, 0, size)
                      : std::clamp<int64_t>(v, -1, size - 1);
    };
    auto start = begin_mask[d] ? (step > 0 ? 0 : size - 1) : clamp(begin[d]);
    auto stop = end_mask[d] ? (step > 0 ? size : -1) : clamp(end[d]);
    auto n = squeeze[d] ? 1 : count(start, stop, step);
    call.need(
        !squeeze[d] || (start >= 0 && start < size), "index is outside x");
    cut.shape.push_back(n);
    cut.strides.push_back(from[d] * step);
    cut.offset += n > 0 ? start * from[d] : 0;
    cut.shifted = d + 1 == rank && start != 0;
    if (!squeeze[d]) {
      result.push_back(n);
    }
  }
  return {cut, result};
}

LoweredOp slice_by_index(const Call& call) {
  auto [cut, result] = index_cut(call);
  return cut_kernel(call, cut, result);
}

// x with what slice_by_index would cut out replaced by `update`.
LoweredOp slice_update(const Call& call) {
  auto x = call.operand("x"), update = call.operand("update"),
       z = call.results[0];
  auto [cut, result] = index_cut(call);
  call.need(
      update.type.dtype == x.type.dtype && update.shape() == result,
      "update is " + to_string(update.type) + ", but the slice is " +
          to_string(result));
  auto inner = strides_of(cut.shape);
  LoweredOp lowered({{x.type.dtype, x.shape()}});
  lowered.moves = true;
  lowered.kernel = [=, cut = cut, n = x.size()](const Frame& frame) {
    std::memcpy(z.ints(frame), x.ints(frame), n * element_size);
    for (int64_t i = 0; i < update.size(); ++i) {
      auto to = cut.offset;
      for (size_t d = 0; d < inner.size(); ++d) {
        to += i / inner[d] % cut.shape[d] * cut.strides[d];
      }
      z.ints(frame)[to] = update.ints(frame)[i];
    }
  };
  return lowered;
}

/// slice_by_size whose begin is known at run time only; it is clamped into x.
LoweredOp dynamic_slice(const Call& call, const Shape& size) {
  auto x = call.operand("x"), begin = call.operand("begin"),
       z = call.results[0];
  for (size_t d = 0; d < size.size(); ++d) {
    call.need(
        size[d] >= 0 && size[d] <= x.shape()[d],
        "size must be known and within x, as begin is not constant");
  }
  auto from = strides_of(x.shape());
  StridedCopy copy(size, from);
  LoweredOp lowered({{x.type.dtype, size}});
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) {
    int64_t offset = 0;
    for (size_t d = 0; d < size.size(); ++d) {
      int64_t at = begin.ints(frame)[d];
      at = at < 0 ? at + x.shape()[d] : at;
      offset += std::clamp<int64_t>(at, 0, x.shape()[d] - size[d]) * from[d];
    }
    copy.run(x.ints(frame) + offset, z.ints(frame));
  };
  return lowered;
}

LoweredOp slice_by_size(const Call& call) {
  auto& x = call.operand("x");
  auto& from = call.operand("begin");
  auto size = call.integers("size");
  auto rank = x.shape().size();
  call.need(
      from.type.dtype != DType::string && !mil::is_float(from.type.dtype) &&
          from.size() == static_cast<int64_t>(rank) && size.size() == rank,
      "begin and size must be integers and match x's rank");
  if (!from.literal) {
    return dynamic_slice(call, size);
  }
  auto begin = call.integers("begin");
  Cut cut;
  cut.strides = strides_of(x.shape());
  for (size_t d = 0; d < rank; ++d) {
    auto all = x.shape()[d];
    auto start = begin[d] < 0 ? begin[d] + all : begin[d];
    auto n = size[d] == -1 ? all - start : size[d];
    call.need(
        start >= 0 && n >= 0 && start <= all && n <= all - start,
        "the slice leaves x " + to_string(x.shape()) + " at axis " +
            std::to_string(d));
    cut.shape.push_back(n);
    cut.offset += n > 0 ? start * cut.strides[d] : 0;
    cut.shifted = d + 1 == rank && start != 0;
  }
  return cut_kernel(call, cut, cut.shape);
}

LoweredOp crop(const Call& call) {
  auto& x = call.operand("x");
  auto rows = call.integers("crop_height"), cols = call.integers("crop_width");
  call.need(
      x.shape().size() == 4 && rows.size() == 2 && cols.size() == 2,
      "x must be (N, C, H, W), crop_height and crop_width two values");
  Cut cut;
  cut.strides = strides_of(x.shape());
  cut.shape = x.shape();
  for (auto [d, amount] : {std::pair(2, &rows), {3, &cols}}) {
    auto [before, after] = std::pair((*amount)[0], (*amount)[1]);
    call.need(
        before >= 0 && after >= 0 && before + after <= cut.shape[d],
        "the crop leaves nothing of x");
    cut.shape[d] -= before + after;
    cut.offset += cut.shape[d] > 0 ? before * cut.strides[d] : 0;
  }
  cut.shifted = cols[0] != 0;
  return cut_kernel(call, cut, cut.shape);
}

LoweredOp reverse(const Call& call) {
  auto& x = call.operand("x");
  auto axes = call.axes("axes", x.shape().size());
  Cut cut;
  cut.shape = x.shape();
  cut.strides = strides_of(x.shape());
  for (auto axis : axes) {
    cut.offset += std::max<int64_t>(cut.shape[axis] - 1, 0) * cut.strides[axis];
    cut.strides[axis] = -cut.strides[axis];
  }
  return cut_kernel(call, cut, cut.shape);
}

LoweredOp reverse_sequence(const Call& call) {
  auto x = call.operand("x"), lengths = call.operand("lengths"),
       z = call.results[0];
  auto rank = x.shape().size();
  auto axis = call.axis(call.integer("seq_axis", 0), rank);
  auto batch = call.axis(call.integer("batch_axis", 0), rank);
  call.need(
      axis != batch && lengths.size() == x.shape()[batch] &&
          !mil::is_float(lengths.type.dtype),
      "lengths must hold one integer a batch");
  auto strides = strides_of(x.shape());
  auto size = x.shape()[axis], batches = x.shape()[batch];
  LoweredOp lowered({x.type});
  lowered.moves = true;
  lowered.kernel = [=, n = x.size()](const Frame& frame) {
    for (int64_t i = 0; i < n; ++i) {
      auto at = i / strides[axis] % size;
      auto length = std::clamp<int64_t>(
          lengths.ints(frame)[i / strides[batch] % batches], 0, size);
      auto from = at < length ? length - 1 - at : at;
      z.ints(frame)[i] = x.ints(frame)[i + (from - at) * strides[axis]];
    }
  };
  return lowered;
}

LoweredOp tile(const Call& call) {
  auto x = call.operand("x"), z = call.results[0];
  auto reps = call.integers("reps");
  call.need(reps.size() == x.shape().size(), "reps must match x's rank");
  auto from = strides_of(x.shape());
  Shape sizes, strides, shape;
  for (size_t d = 0; d < reps.size(); ++d) {
    call.need(reps[d] >= 1 && reps[d] <= 1 << 24, "reps must be positive");
    sizes.insert(sizes.end(), {reps[d], x.shape()[d]});
    strides.insert(strides.end(), {0, from[d]});
    shape.push_back(reps[d] * x.shape()[d]);
  }
  StridedCopy copy(sizes, strides);
  LoweredOp lowered({{x.type.dtype, shape}});
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) {
    copy.run(x.ints(frame), z.ints(frame));
  };
  return lowered;
}

LoweredOp sliding_windows(const Call& call) {
  auto& x = call.operand("x");
  auto rank = x.shape().size();
  auto axis = call.axis(call.integer("axis"), rank);
  auto size = call.integer("size"), step = call.integer("stride", 1);
  auto n = x.shape()[axis];
  call.need(size >= 1 && size <= n && step >= 1, "size or stride is outside x");
  Cut cut;
  cut.shape = x.shape();
  cut.strides = strides_of(x.shape());
  cut.shape[axis] = (n - size) / step + 1;
  cut.shape.insert(cut.shape.begin() + axis + 1, size);
  auto stride = cut.strides[axis];
  cut.strides[axis] = stride * step;
  cut.strides.insert(cut.strides.begin() + axis + 1, stride);
  return cut_kernel(call, cut, cut.shape);
}

/// Values joined along `axis`; interleaved, their slices alternate.
LoweredOp concat(const Call& call) {
  auto values = call.list("values");
  auto z = call.results[0];
  auto& first = values[0];
  auto axis = call.axis(call.integer("axis"), first.shape().size());
  bool interleave = call.flag("interleave", false);
  auto shape = first.shape();
  shape[axis] = 0;
  for (auto& value : values) {
    call.need(
        value.type.dtype == first.type.dtype &&
            value.shape().size() == shape.size(),
        "values must be of one type and rank");
    for (size_t d = 0; d < shape.size(); ++d) {
      bool along = static_cast<int64_t>(d) == axis && !interleave;
      call.need(
          along || value.shape()[d] == first.shape()[d],
          "values must agree in every other axis");
    }
    shape[axis] += value.shape()[axis];
  }
  auto stride = strides_of(shape)[axis];
  auto total = shape[axis] * stride;
  auto outer = total ? elements(shape) / total : 0;
  LoweredOp lowered({{first.type.dtype, shape}});
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) {
    int64_t at = 0;
    for (auto& value : values) {
      auto own = value.shape()[axis] * stride;
      auto piece = interleave ? stride : own;
      auto skip =
          interleave ? stride * static_cast<int64_t>(values.size()) : total;
      auto pieces = piece ? outer * own / piece : 0;
      for (int64_t i = 0; i < pieces; ++i) {
        std::memcpy(
            z.ints(frame) + at + i * skip,
            value.ints(frame) + i * piece,
            piece * element_size);
      }
      at += piece;
    }
  };
  return lowered;
}

LoweredOp stack(const Call& call) {
  auto values = call.list("values");
  auto z = call.results[0];
  auto& first = values[0];
  auto axis = call.axis(call.integer("axis"), first.shape().size() + 1);
  for (auto& value : values) {
    call.need(value.type == first.type, "values must be of one type and shape");
  }
  auto shape = first.shape();
  shape.insert(shape.begin() + axis, static_cast<int64_t>(values.size()));
  auto inner = strides_of(shape)[axis];
  auto outer = inner ? first.size() / inner : 0;
  LoweredOp lowered({{first.type.dtype, shape}});
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) {
    auto* out = z.ints(frame);
    for (int64_t o = 0; o < outer; ++o) {
      for (auto& value : values) {
        std::memcpy(out, value.ints(frame) + o * inner, inner * element_size);
        out += inner;
      }
    }
  };
  return lowered;
}

std::vector<int64_t> split_sizes(const Call& call, int64_t all) {
  if (call.has("split_sizes")) {
    auto sizes = call.integers("split_sizes");
    int64_t total = 0;
    for (auto size : sizes) {
      call.need(size >= 0 && size <= all, "split_sizes are outside x");
      total += size;
    }
    call.need(total == all, "split_sizes must add up to the axis");
    return sizes;
  }
  auto parts = call.integer("num_splits");
  call.need(
      parts == static_cast<int64_t>(call.results.size()) && parts >= 1 &&
          all % parts == 0,
      "num_splits must divide the axis and be the number of results");
  return std::vector<int64_t>(parts, all / parts);
}

LoweredOp split(const Call& call) {
  auto x = call.operand("x");
  auto results = call.results;
  auto axis = call.axis(call.integer("axis"), x.shape().size());
  auto sizes = split_sizes(call, x.shape()[axis]);
  auto stride = strides_of(x.shape())[axis];
  auto total = x.shape()[axis] * stride;
  auto outer = total ? x.size() / total : 0;
  std::vector<Type> types;
  for (auto size : sizes) {
    auto shape = x.shape();
    shape[axis] = size;
    types.push_back({x.type.dtype, shape});
  }
  call.need(
      results.size() == sizes.size(),
      "there are " + std::to_string(sizes.size()) + " parts");
  LoweredOp lowered(types);
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) {
    int64_t at = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      auto own = sizes[i] * stride;
      for (int64_t o = 0; o < outer; ++o) {
        std::memcpy(
            results[i].ints(frame) + o * own,
            x.ints(frame) + o * total + at,
            own * element_size);
      }
      at += own;
    }
  };
  return lowered;
}

constexpr Op table[] = {
    {"concat", concat, "iOS15 tensor_operation: concat"},
    {"crop", crop, "iOS15 image_resizing: crop"},
    {"reverse", reverse, "iOS15 tensor_transformation: reverse"},
    {"reverse_sequence",
     reverse_sequence,
     "iOS15 tensor_transformation: reverse_sequence"},
    {"slice_by_index",
     slice_by_index,
     "iOS15 tensor_transformation: slice_by_index"},
    {"slice_by_size",
     slice_by_size,
     "iOS15 tensor_transformation: slice_by_size"},
    {"slice_update", slice_update, "iOS18 tensor_transformation: slice_update"},
    {"sliding_windows",
     sliding_windows,
     "iOS15 tensor_transformation: sliding_windows"},
    {"split", split, "iOS15 tensor_operation: split"},
    {"stack", stack, "iOS15 tensor_operation: stack"},
    {"tile", tile, "iOS15 tensor_operation: tile"},
};

}  // namespace

std::span<const Op> slice_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
