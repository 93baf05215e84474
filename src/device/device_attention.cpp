// Packs the heads for one fused program; query heads of a group become rows.
#include "device/device_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "device/executables.h"
#include "device/plan.h"
#include "device/runner.h"
#include "host/half.h"
#include "host/loops.h"
#include "host/rows.h"
#include "kernels/pack.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

using trace::Placement;

using kernels::Attention;
using kernels::Heads;
using Kind = kernels::Mask::Kind;

// Bound of scores on the engine: half of the range in which a sum of products
// is safe, so that a masked score stays below every other one.
constexpr float max_score = 8192.0f;
// Added to a hidden score; its weight is exp(-13616) = 0 at the least.
constexpr float hidden = -30000.0f;
// Bound of the largest value that a row's mask adds: at 16, fp16 keeps the sum
// to 2^-7; at -1000 it would keep nothing of the scores.
constexpr float max_added = 16.0f;
// v is scaled to this power of two: weights sum to one, so outputs stay below.
constexpr int log2_max_value = 13;

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

void load_row(const MatrixView& m, int64_t r, float* out) {
  host::copy_rows(m.block(r, 0, 1, m.cols), out, m.cols);
}

/// Largest L2 norm of a row and largest magnitude over all heads.
struct Extent {
  float norm = 0;
  float value = 0;
};

Extent extent(const Heads& x) {
  Extent out;
  std::vector<float> row(x.shape[3]);
  for (int64_t b = 0; b < x.shape[0]; ++b) {
    for (int64_t h = 0; h < x.shape[1]; ++h) {
      auto head = x.head(b, h);
      for (int64_t r = 0; r < head.rows; ++r) {
        load_row(head, r, row.data());
        double squares = 0;
        for (float value : row) {
          squares += static_cast<double>(value) * value;
          // A comparison that NaN fails would hide it.
          out.value =
              std::isnan(value) ? value : std::max(out.value, std::abs(value));
        }
        auto norm = static_cast<float>(std::sqrt(squares));
        out.norm = std::isnan(norm) ? norm : std::max(out.norm, norm);
      }
    }
  }
  return out;
}

/// The additive mask value of one score, sinks and padding apart.
float mask_value(
    const Attention& a, int64_t b, int64_t h, int64_t row, int64_t key) {
  auto& mask = a.mask;
  auto& s = mask.strides;
  auto at = b * s[0] + h * s[1] + row * s[2] + key * s[3];
  switch (mask.kind) {
    case Kind::none:
      return 0.0f;
    case Kind::causal:
      return key <= row + a.k.shape[2] - a.q.shape[2] ? 0.0f : hidden;
    case Kind::boolean:
      return static_cast<const uint8_t*>(mask.data)[at] ? 0.0f : hidden;
    case Kind::additive:
      break;
  }
  float value;
  auto* data = static_cast<const char*>(mask.data) +
               at * static_cast<int64_t>(size_of(mask.type));
  host::to_float(data, mask.type, &value, 1);
  return value;
}

/// One call: its padded shape, and its program once supports() loaded it.
class DeviceAttention {
 public:
  DeviceAttention(
      Device& device,
      const Attention& attention,
      const Heads& out,
      trace::Layer& layer)
      : device_(device), a_(attention), out_(out), layer_(layer) {
    auto keys = a_.k.shape[2] + (a_.sinks ? 1 : 0);
    group_ = a_.q.shape[1] / a_.k.shape[1];
    tile_ = std::max<int64_t>(1, 1024 / group_);
    mask_per_head_ =
        a_.sinks ||
        ((a_.mask.kind == Kind::boolean || a_.mask.kind == Kind::additive) &&
         a_.mask.strides[1] != 0);
    shape_ = {
        a_.k.shape[1],
        row_bucket(group_ * std::min(tile_, a_.q.shape[2])),
        keys <= 2048 ? row_bucket(keys) : round_up(keys, 2048),
        round_up(a_.q.shape[3], 32),
        round_up(a_.v.shape[3], 32),
        mask_per_head_};
  }

  /// Whether axes, scores, values and mask are in the device's range, and its
  /// program has room.
  std::optional<Placement> supports() {
    if (!axes_fit() || !values_fit() || !mask_fits()) {
      return Placement::out_of_range;
    }
    auto found = executable_cache().get(device_, shape_);
    program_ = found.program;
    return program_ ? std::nullopt : std::optional(found.reason);
  }

  void run() {
    auto& program = program_;
    std::lock_guard lock(program->mutex);
    for (int64_t b = 0; b < a_.q.shape[0]; ++b) {
      pack_heads(a_.k, b, 1.0f, shape_.keys, *program, 1);
      pack_heads(
          a_.v, b, std::ldexp(1.0f, exponent_), shape_.keys, *program, 3);
      for (int64_t begin = 0; begin < a_.q.shape[2]; begin += tile_) {
        auto rows = std::min(tile_, a_.q.shape[2] - begin);
        {
          auto bytes = moved(a_.q, a_.q.shape[1] * rows * a_.q.shape[3]);
          trace::Span span("pack_x", layer_.name, bytes, 0);
          pack_queries(b, begin, rows, *program);
          pack_mask(b, begin, rows, *program);
          fill_canaries(*program);
        }
        auto flops = 2 * a_.q.shape[1] * rows * a_.k.shape[2] *
                     (a_.q.shape[3] + a_.v.shape[3]);
        LoadedProgram::evaluate(
            device_,
            program,
            program->inputs,
            layer_,
            2 * (a_.q.shape[1] * rows * (a_.q.shape[3] + a_.v.shape[3]) +
                 shape_.heads * a_.k.shape[2] *
                     (a_.k.shape[3] + a_.v.shape[3])),
            flops);
        trace::Span span(
            "unpack",
            layer_.name,
            moved(out_, a_.q.shape[1] * rows * a_.v.shape[3]),
            0);
        unpack(b, begin, rows, *program);
      }
    }
  }

 private:
  bool axes_fit() const {
    auto axes = {shape_.heads, shape_.rows, shape_.keys, shape_.features};
    return std::all_of(axes.begin(), axes.end(), [&](int64_t axis) {
      return axis > 0 && axis <= device_.limits().max_axis;
    });
  }

  /// By a bound of all scores, q k <= |q| |k|. Sets the scale of v.
  bool values_fit() {
    auto bound = extent(a_.q).norm * extent(a_.k).norm * std::abs(a_.scale);
    auto values = extent(a_.v).value;
    // Values near 2^13 lose least to fp16's floor; a zero v needs no scale.
    exponent_ = values > 0 ? log2_max_value - 1 - std::ilogb(values) : 0;
    return bound <= max_score && std::isfinite(values);
  }

  /// Whether the mask leaves every row a score.
  bool mask_fits() {
    auto& strides = a_.mask.strides;
    // One look at a broadcast axis; a causal mask hides most from row 0.
    auto batches = strides[0] ? a_.q.shape[0] : 1;
    auto heads = mask_per_head_ ? a_.q.shape[1] : 1;
    auto rows = strides[2] ? a_.q.shape[2] : 1;
    for (int64_t b = 0; b < batches; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t row = 0; row < rows; ++row) {
          if (!mask_row_fits(b, h, row)) {
            return false;
          }
        }
      }
    }
    return true;
  }

  bool mask_row_fits(int64_t b, int64_t h, int64_t row) {
    fill_mask_row(b, h, row);
    float largest = hidden;
    for (float value : row_) {
      // A comparison that NaN fails would hide it.
      if (!(value <= max_added)) {
        return false;
      }
      largest = std::max(largest, value);
    }
    // Else it hides all keys alike, or leaves fp16 no bits for the scores.
    return largest >= -max_added;
  }

  /// Row r of head h of input `index`, as the surface holds it.
  uint16_t* line(
      SurfaceLock& lock,
      const LoadedProgram& program,
      size_t index,
      int64_t rows,
      int64_t h,
      int64_t r) {
    return reinterpret_cast<uint16_t*>(
        lock.data() + (h * rows + r) * program.input_row_bytes[index]);
  }

  void write_row(
      const MatrixView& m,
      int64_t r,
      float scale,
      int64_t padded,
      uint16_t* dst) {
    row_.assign(padded, 0.0f);
    load_row(m, r, row_.data());
    for (int64_t c = 0; c < m.cols; ++c) {
      row_[c] *= scale;
    }
    host::from_float(row_.data(), Float::f16, dst, padded);
  }

  /// Bytes that converting elements of x to or from a surface moves.
  static int64_t moved(const Heads& x, int64_t elements) {
    return elements * static_cast<int64_t>(size_of(x.type) + sizeof(uint16_t));
  }

  void pack_heads(
      const Heads& x,  // (B, G, T, D)
      int64_t b,
      float scale,
      int64_t rows_padded,
      LoadedProgram& program,
      size_t index) {
    auto padded = round_up(x.shape[3], 32);
    trace::Span span(
        "pack_x",
        layer_.name,
        moved(x, shape_.heads * x.shape[2] * x.shape[3]),
        0);
    SurfaceLock lock(*program.inputs[index], Surface::Access::write);
    for (int64_t g = 0; g < shape_.heads; ++g) {
      auto head = x.head(b, g);
      for (int64_t r = 0; r < rows_padded; ++r) {
        auto* dst = line(lock, program, index, rows_padded, g, r);
        if (r < head.rows) {
          write_row(head, r, scale, padded, dst);
        } else {
          std::fill_n(dst, padded, 0);
        }
      }
    }
  }

  void pack_queries(
      int64_t b, int64_t begin, int64_t rows, LoadedProgram& program) {
    SurfaceLock lock(*program.inputs[0], Surface::Access::write);
    for (int64_t g = 0; g < shape_.heads; ++g) {
      for (int64_t r = 0; r < shape_.rows; ++r) {
        auto* dst = line(lock, program, 0, shape_.rows, g, r);
        if (r < group_ * rows) {
          auto head = a_.q.head(b, g * group_ + r / rows);
          write_row(head, begin + r % rows, a_.scale, shape_.features, dst);
        } else {
          std::fill_n(dst, shape_.features, 0);
        }
      }
    }
  }

  void pack_mask(
      int64_t b, int64_t begin, int64_t rows, LoadedProgram& program) {
    SurfaceLock lock(*program.inputs[2], Surface::Access::write);
    for (int64_t g = 0; g < (mask_per_head_ ? shape_.heads : 1); ++g) {
      for (int64_t r = 0; r < shape_.rows; ++r) {
        if (r < group_ * rows) {
          fill_mask_row(b, g * group_ + r / rows, begin + r % rows);
        } else {
          row_.assign(shape_.keys, hidden);
        }
        host::from_float(
            row_.data(),
            Float::f16,
            line(lock, program, 2, shape_.rows, g, r),
            shape_.keys);
      }
    }
  }

  /// row_ = what is added to the scores of one query row: of its keys, then of
  /// its sink; padding is hidden.
  void fill_mask_row(int64_t b, int64_t h, int64_t row) {
    row_.assign(shape_.keys, hidden);
    auto keys = a_.k.shape[2];
    if (a_.mask.kind == Kind::additive) {
      auto& mask = a_.mask;
      Heads values{
          const_cast<void*>(mask.data),
          mask.type,
          {1, 1, a_.q.shape[2], keys},
          mask.strides};
      load_row(values.head(b, h), row, row_.data());
    } else {
      for (int64_t key = 0; key < keys; ++key) {
        row_[key] = mask_value(a_, b, h, row, key);
      }
    }
    if (a_.sinks) {
      row_[keys] = a_.sinks[h];
    }
    for (auto& value : row_) {
      value = std::max(value, hidden);  // NaN stays
    }
  }

  void fill_canaries(LoadedProgram& program) {
    SurfaceLock lock(*program.outputs[0], Surface::Access::write);
    std::fill_n(
        reinterpret_cast<uint16_t*>(lock.data()),
        shape_.heads * shape_.rows * program.output_row_bytes[0] / 2,
        host::canary);
  }

  void unpack(int64_t b, int64_t begin, int64_t rows, LoadedProgram& program) {
    SurfaceLock lock(*program.outputs[0], Surface::Access::read);
    auto values = a_.v.shape[3];
    auto undo = std::ldexp(1.0f, -exponent_);
    row_.resize(values);
    for (int64_t h = 0; h < a_.q.shape[1]; ++h) {
      bool nonzero = false;
      for (int64_t i = 0; i < rows; ++i) {
        auto r = h / group_ * shape_.rows + h % group_ * rows + i;
        auto* src = reinterpret_cast<const uint16_t*>(
            lock.data() + r * program.output_row_bytes[0]);
        host::to_float(src, Float::f16, row_.data(), values);
        for (int64_t c = 0; c < values; ++c) {
          check(src[c], row_[c]);
          nonzero |= row_[c] != 0;
          row_[c] *= undo;
        }
        auto at = b * out_.strides[0] + h * out_.strides[1] +
                  (begin + i) * out_.strides[2];
        host::from_float(
            row_.data(),
            out_.type,
            static_cast<char*>(out_.data) +
                at * static_cast<int64_t>(size_of(out_.type)),
            values);
      }
      if (!nonzero && sees_values(b, h, begin, rows)) {
        throw DeviceError(
            Cause::wrong_values,
            "all outputs of head " + std::to_string(h) +
                " are zero, and its values are not");
      }
    }
  }

  void check(uint16_t half, float value) {
    if (half == host::canary) {
      throw DeviceError(Cause::wrote_nothing, "outputs were not written");
    }
    if (!std::isfinite(value)) {
      throw DeviceError(
          Cause::nonfinite, "a non-finite output of finite operands");
    }
  }

  /// Whether any of these query rows sees a key with a value. A sink may take
  /// all of the probability.
  bool sees_values(int64_t b, int64_t h, int64_t begin, int64_t rows) {
    auto values = a_.v.head(b, h / group_);
    std::vector<float> row(values.cols);
    for (int64_t key = 0; !a_.sinks && key < values.rows; ++key) {
      load_row(values, key, row.data());
      bool zero =
          std::all_of(row.begin(), row.end(), [](float x) { return x == 0; });
      for (int64_t i = begin; !zero && i < begin + rows; ++i) {
        if (mask_value(a_, b, h, i, key) >= -max_added) {
          return true;
        }
      }
    }
    return false;
  }

  Device& device_;
  const Attention& a_;
  const Heads& out_;
  trace::Layer& layer_;
  AttentionShape shape_;
  std::shared_ptr<LoadedProgram> program_;
  int64_t group_;
  int64_t tile_;  // query positions of one call
  bool mask_per_head_;
  int exponent_ = 0;  // v is packed times 2^exponent_
  std::vector<float> row_;
};

void fill_nan(const Heads& out) {
  std::vector<float> nan(out.shape[3], std::numeric_limits<float>::quiet_NaN());
  for (int64_t b = 0; b < out.shape[0]; ++b) {
    for (int64_t h = 0; h < out.shape[1]; ++h) {
      auto head = out.head(b, h);
      for (int64_t r = 0; r < head.rows; ++r) {
        auto* dst = const_cast<void*>(head.block(r, 0, 1, head.cols).data);
        host::from_float(nan.data(), out.type, dst, head.cols);
      }
    }
  }
}

}  // namespace

void run_attention(
    Device& device,
    const Attention& attention,
    const Heads& out,
    trace::Layer& layer) {
  auto on_blas = [&] {
    trace::Span span("attention", layer.name, 0, 0);
    kernels::attention_forward(attention, out, nullptr);
  };
  std::optional<DeviceAttention> call;  // planned when asked
  run_placed(
      device,
      attention.q.shape[2],
      layer,
      {[&] { return call.emplace(device, attention, out, layer).supports(); },
       [&] { call->run(); },
       on_blas,
       [&] { fill_nan(out); }});
}

}  // namespace mlx_ane
