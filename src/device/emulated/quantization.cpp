// Quantised values: quantize, dequantize, and constants stored compressed.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "device/emulated/broadcast.h"
#include "device/emulated/copy.h"

namespace mlx_ane::emulated {

namespace {

/// scale and zero_point broadcast along one axis of x, or scalar.
struct Affine {
  Operand scale, zero;
  int64_t inner = 1, size = 1;  // channel of element i: i / inner % size

  Affine(const Call& call, const Shape& x) {
    scale = call.operand("scale");
    zero = call.optional("zero_point");
    call.need(mil::is_float(scale.type.dtype), "scale must be fp16 or fp32");
    call.need(
        !zero || !mil::is_float(zero.type.dtype),
        "zero_point must be integers");
    if (scale.size() == 1 && (!zero || zero.size() == 1)) {
      return;
    }
    auto axis = call.axis(call.integer("axis"), x.size());
    size = x[axis];
    inner = strides_of(x)[axis];
    call.need(
        (scale.size() == size || scale.size() == 1) &&
            (!zero || zero.size() == size || zero.size() == 1),
        "scale and zero_point must have one value, or one for each of the " +
            std::to_string(size) + " along the axis");
  }

  float scale_at(const Frame& frame, int64_t i) const {
    return scale.floats(frame)[scale.size() == 1 ? 0 : i / inner % size];
  }
  int32_t zero_at(const Frame& frame, int64_t i) const {
    return zero ? zero.ints(frame)[zero.size() == 1 ? 0 : i / inner % size] : 0;
  }
};

LoweredOp quantize(const Call& call) {
  auto x = call.operand("input"), z = call.results[0];
  call.need(mil::is_float(x.type.dtype), "input must be fp16 or fp32");
  auto name = call.text("output_dtype", "");
  auto dtype = mil::dtype_named(name);
  call.need(
      dtype && (*dtype == DType::int8 || *dtype == DType::uint8 ||
                *dtype == DType::int4 || *dtype == DType::uint4),
      "output_dtype \"" + name + "\" must be int8, uint8, int4 or uint4");
  Affine affine(call, x.shape());
  auto [low, high] = range_of(*dtype);
  auto least = static_cast<float>(low), most = static_cast<float>(high);
  return LoweredOp(
      {{*dtype, x.shape()}}, [=, n = x.size()](const Frame& frame) {
        for (int64_t i = 0; i < n; ++i) {
          auto v =
              std::nearbyint(x.floats(frame)[i] / affine.scale_at(frame, i)) +
              static_cast<float>(affine.zero_at(frame, i));
          z.ints(frame)[i] =
              std::isnan(v) ? 0
                            : static_cast<int32_t>(std::clamp(v, least, most));
        }
      });
}

LoweredOp dequantized(const Call& call, const char* input) {
  auto x = call.operand(input), z = call.results[0];
  call.need(
      !mil::is_float(x.type.dtype) && x.type.dtype != DType::string,
      std::string(input) + " must be integers");
  Affine affine(call, x.shape());
  auto dtype = affine.scale.type.dtype;
  return LoweredOp({{dtype, x.shape()}}, [=, n = x.size()](const Frame& frame) {
    for (int64_t i = 0; i < n; ++i) {
      auto centred =
          static_cast<double>(x.ints(frame)[i]) - affine.zero_at(frame, i);
      z.floats(frame)[i] =
          static_cast<float>(centred) * affine.scale_at(frame, i);
    }
  });
}

LoweredOp dequantize(const Call& call) {
  return dequantized(call, "input");
}

LoweredOp constexpr_affine_dequantize(const Call& call) {
  return dequantized(call, "quantized_data");
}

/// How axes of a small tensor map onto blocks of a large one.
struct Blocks {
  Shape shape, strides, small_strides, block;

  Blocks(const Call& call, const Shape& large, const Shape& small)
      : shape(large),
        strides(strides_of(large)),
        small_strides(strides_of(small)) {
    call.need(
        large.size() == small.size(), "scale must have the rank of the data");
    for (size_t d = 0; d < large.size(); ++d) {
      call.need(
          small[d] > 0 && large[d] % small[d] == 0,
          "the data must divide into the blocks of its scale");
      block.push_back(std::max<int64_t>(large[d] / small[d], 1));
    }
  }

  int64_t find(int64_t i) const {
    int64_t at = 0;
    for (size_t d = 0; d < shape.size(); ++d) {
      at += i / strides[d] % shape[d] / block[d] * small_strides[d];
    }
    return at;
  }
};

// scale * (data - offset), a scale for each block of data
LoweredOp constexpr_blockwise_shift_scale(const Call& call) {
  auto data = call.operand("data"), scale = call.operand("scale"),
       offset = call.optional("offset"), z = call.results[0];
  call.need(
      mil::is_float(scale.type.dtype) && data.type.dtype != DType::string,
      "scale must be fp16 or fp32");
  call.need(
      !offset || offset.shape() == scale.shape(),
      "offset must have the shape of scale");
  Blocks blocks(call, data.shape(), scale.shape());
  bool floats = mil::is_float(data.type.dtype);
  bool float_offset = offset && mil::is_float(offset.type.dtype);
  return LoweredOp(
      {{scale.type.dtype, data.shape()}},
      [=, n = data.size()](const Frame& frame) {
        for (int64_t i = 0; i < n; ++i) {
          auto b = blocks.find(i);
          double value = floats ? data.floats(frame)[i] : data.ints(frame)[i];
          if (offset) {
            value -=
                float_offset ? offset.floats(frame)[b] : offset.ints(frame)[b];
          }
          z.floats(frame)[i] =
              static_cast<float>(value) * scale.floats(frame)[b];
        }
      });
}

/// Value i of `width` bits, packed into bytes from the low bits on.
int32_t packed(const int32_t* bytes, int64_t i, int width) {
  auto bit = i * width;
  auto low = static_cast<uint32_t>(bytes[bit / 8]);
  auto high =
      bit % 8 + width > 8 ? static_cast<uint32_t>(bytes[bit / 8 + 1]) : 0u;
  return static_cast<int32_t>(
      ((low | high << 8) >> (bit % 8)) & ((1u << width) - 1));
}

int log2_of(int64_t n) {
  int bits = 0;
  while (int64_t{1} << bits < n && bits < 62) {
    ++bits;
  }
  return int64_t{1} << bits == n ? bits : -1;
}

// iOS16: indices packed into uint8, lut (2^bits), shape given.
LoweredOp packed_lut(const Call& call) {
  auto indices = call.operand("indices"), lut = call.operand("lut"),
       z = call.results[0];
  auto shape = call.integers("shape");
  auto n = elements(shape);
  auto bits = log2_of(lut.size());
  call.need(
      indices.type.dtype == DType::uint8 && bits >= 1 && bits <= 8,
      "indices must be uint8 and lut have 2, 4, 16, 64 or 256 values");
  call.need(
      indices.size() == (n * bits + 7) / 8,
      "indices must have " + std::to_string((n * bits + 7) / 8) + " bytes");
  LoweredOp lowered({{lut.type.dtype, shape}});
  lowered.moves = true;
  lowered.kernel = [=](const Frame& frame) {
    auto* bytes = indices.ints(frame);
    for (int64_t i = 0; i < n; ++i) {
      z.ints(frame)[i] = lut.ints(frame)[packed(bytes, i, bits)];
    }
  };
  return lowered;
}

// iOS18: lut (groups of each axis..., 2^bits, vector); an index stands for
// `vector` values along vector_axis.
LoweredOp constexpr_lut_to_dense(const Call& call) {
  if (call.has("shape")) {
    return packed_lut(call);
  }
  auto indices = call.operand("indices"), lut = call.operand("lut"),
       z = call.results[0];
  auto rank = indices.shape().size();
  call.need(
      lut.shape().size() == rank + 2 && !mil::is_float(indices.type.dtype),
      "lut must have two axes more than indices");
  auto entries = lut.shape()[rank], vector = lut.shape()[rank + 1];
  Shape groups(lut.shape().begin(), lut.shape().begin() + rank);
  auto axis = vector == 1 ? 0 : call.axis(call.integer("vector_axis"), rank);
  auto shape = indices.shape();
  if (rank > 0) {
    shape[axis] *= vector;
  }
  Blocks blocks(call, indices.shape(), groups);
  auto stride = rank ? strides_of(indices.shape())[axis] : 1;
  LoweredOp lowered({{lut.type.dtype, shape}});
  lowered.moves = true;
  lowered.kernel = [=, n = indices.size()](const Frame& frame) {
    for (int64_t i = 0; i < n; ++i) {
      auto entry = std::clamp<int64_t>(indices.ints(frame)[i], 0, entries - 1);
      auto* from =
          lut.ints(frame) + (blocks.find(i) * entries + entry) * vector;
      auto to = i / stride * stride * vector + i % stride;
      for (int64_t v = 0; v < vector; ++v) {
        z.ints(frame)[to + v * stride] = from[v];
      }
    }
  };
  return lowered;
}

// Values of `nonzero_data` where the mask is set, in order; iOS16 packs the
// mask.
LoweredOp constexpr_sparse_to_dense(const Call& call) {
  auto values = call.operand("nonzero_data"), mask = call.operand("mask"),
       z = call.results[0];
  bool bits = call.has("shape");
  auto shape = bits ? call.integers("shape") : mask.shape();
  auto n = elements(shape);
  call.need(
      !mil::is_float(mask.type.dtype) && mask.type.dtype != DType::string &&
          mask.size() == (bits ? (n + 7) / 8 : n),
      "mask must have one bit an element");
  LoweredOp lowered({{values.type.dtype, shape}});
  lowered.moves = true;
  lowered.kernel = [=, count = values.size()](const Frame& frame) {
    int64_t next = 0;
    for (int64_t i = 0; i < n; ++i) {
      auto set = bits ? packed(mask.ints(frame), i, 1) : mask.ints(frame)[i];
      bool take = set != 0 && next < count;
      z.ints(frame)[i] = take ? values.ints(frame)[next++] : 0;
    }
  };
  return lowered;
}

constexpr Op table[] = {
    {"constexpr_affine_dequantize",
     constexpr_affine_dequantize,
     "iOS16 constexpr_ops: constexpr_affine_dequantize"},
    {"constexpr_blockwise_shift_scale",
     constexpr_blockwise_shift_scale,
     "iOS18 compression: constexpr_blockwise_shift_scale"},
    {"constexpr_lut_to_dense",
     constexpr_lut_to_dense,
     "iOS16 constexpr_ops: constexpr_lut_to_dense"},
    {"constexpr_sparse_to_dense",
     constexpr_sparse_to_dense,
     "iOS16 constexpr_ops: constexpr_sparse_to_dense"},
    {"dequantize", dequantize, "iOS17 quantization_ops: dequantize"},
    {"quantize", quantize, "iOS17 quantization_ops: quantize"},
};

}  // namespace

std::span<const Op> quantization_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
