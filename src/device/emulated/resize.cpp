// Image resizing over the last two axes of x (..., H, W).
#include <algorithm>
#include <cmath>

#include "device/emulated/op.h"

namespace mlx_ane::emulated {

namespace {

/// Between which two positions an output position lies, and how far.
struct Tap {
  int64_t low, high;
  float t;
};
using Taps = std::vector<Tap>;

/// Position of output i on the input axis.
using Grid = double (*)(int64_t i, int64_t in, int64_t out);

double align_corners(int64_t i, int64_t in, int64_t out) {
  return out == 1
             ? 0.0
             : static_cast<double>(i * (in - 1)) / static_cast<double>(out - 1);
}
// A single output lies in the middle.
double strict_align_corners(int64_t i, int64_t in, int64_t out) {
  return out == 1 ? static_cast<double>(in - 1) / 2 : align_corners(i, in, out);
}
double half_pixel(int64_t i, int64_t in, int64_t out) {
  auto spacing = static_cast<double>(in) / static_cast<double>(out);
  return (static_cast<double>(i) + 0.5) * spacing - 0.5;
}
double spread(int64_t i, int64_t in, int64_t out) {
  auto size = static_cast<double>(in), n = static_cast<double>(out);
  return out == 1 ? 0.0 : static_cast<double>(i) * (size - size / n) / (n - 1);
}
double offset_corners(int64_t i, int64_t in, int64_t out) {
  auto delta = static_cast<double>(std::max<int64_t>(1, in - 1)) /
               static_cast<double>(out);
  return (0.5 + static_cast<double>(i)) * delta;
}
double scaled(int64_t i, int64_t in, int64_t out) {
  return static_cast<double>(i) * static_cast<double>(in) /
         static_cast<double>(out);
}

Taps linear_taps(Grid grid, int64_t in, int64_t out) {
  Taps taps;
  for (int64_t i = 0; i < out; ++i) {
    auto at = std::clamp(grid(i, in, out), 0.0, static_cast<double>(in - 1));
    auto low = static_cast<int64_t>(at);
    taps.push_back(
        {low,
         std::min(low + 1, in - 1),
         static_cast<float>(at - static_cast<double>(low))});
  }
  return taps;
}

Taps nearest_taps(Grid grid, int64_t in, int64_t out) {
  Taps taps;
  for (int64_t i = 0; i < out; ++i) {
    // Products of sizes are exact; the small term undoes the division's
    // rounding.
    auto at = static_cast<int64_t>(std::floor(grid(i, in, out) + 1e-9));
    at = std::clamp<int64_t>(at, 0, in - 1);
    taps.push_back({at, at, 0.0f});
  }
  return taps;
}

LoweredOp resample(const Call& call, const Taps& rows, const Taps& cols) {
  auto x = call.operand("x"), z = call.results[0];
  auto shape = x.shape();
  auto rank = shape.size();
  auto h = shape[rank - 2], w = shape[rank - 1];
  shape[rank - 2] = static_cast<int64_t>(rows.size());
  shape[rank - 1] = static_cast<int64_t>(cols.size());
  auto planes = x.size() / (h * w);  // sizes_of: neither is 0
  return LoweredOp({{x.type.dtype, shape}}, [=](const Frame& frame) {
    auto* out = z.floats(frame);
    for (int64_t p = 0; p < planes; ++p) {
      auto* plane = x.floats(frame) + p * h * w;
      for (auto& r : rows) {
        auto *top = plane + r.low * w, *bottom = plane + r.high * w;
        for (auto& c : cols) {
          auto a = top[c.low] + c.t * (top[c.high] - top[c.low]);
          if (r.t == 0) {
            *out++ = c.t == 0 ? top[c.low] : a;
            continue;
          }
          auto b = bottom[c.low] + c.t * (bottom[c.high] - bottom[c.low]);
          *out++ = a + r.t * (b - a);
        }
      }
    }
  });
}

/// Sizes of the last two axes and of their results.
struct Sizes {
  int64_t in[2], out[2];
};

Sizes sizes_of(const Call& call, const char* height, const char* width) {
  auto& x = call.operand("x");
  auto rank = x.shape().size();
  call.need(
      mil::is_float(x.type.dtype) && rank >= 3,
      "x must be fp16 or fp32 and (..., C, H, W)");
  Sizes s{{x.shape()[rank - 2], x.shape()[rank - 1]}, {}};
  bool scale = std::string(height).starts_with("scale");
  const char* names[] = {height, width};
  for (int d = 0; d < 2; ++d) {
    double size =
        scale ? std::floor(
                    call.number(names[d], 1.0f) * static_cast<double>(s.in[d]))
              : static_cast<double>(call.integer(names[d]));
    call.need(
        size >= 1 && size <= 1 << 20 && s.in[d] >= 1,
        std::string(names[d]) + " is out of range");
    s.out[d] = static_cast<int64_t>(size);
  }
  return s;
}

LoweredOp linear(const Call& call, const Sizes& s, Grid grid) {
  return resample(
      call,
      linear_taps(grid, s.in[0], s.out[0]),
      linear_taps(grid, s.in[1], s.out[1]));
}

LoweredOp nearest(const Call& call, const Sizes& s) {
  return resample(
      call,
      nearest_taps(scaled, s.in[0], s.out[0]),
      nearest_taps(scaled, s.in[1], s.out[1]));
}

LoweredOp resize_bilinear(const Call& call) {
  auto mode = call.text("sampling_mode", "DEFAULT");
  Grid grid = mode == "DEFAULT"                ? spread
              : mode == "ALIGN_CORNERS"        ? align_corners
              : mode == "STRICT_ALIGN_CORNERS" ? strict_align_corners
              : mode == "UNALIGN_CORNERS"      ? half_pixel
              : mode == "OFFSET_CORNERS"       ? offset_corners
                                               : nullptr;
  call.need(grid != nullptr, "sampling_mode \"" + mode + "\" is unknown");
  return linear(
      call, sizes_of(call, "target_size_height", "target_size_width"), grid);
}

LoweredOp resize_nearest_neighbor(const Call& call) {
  return nearest(
      call, sizes_of(call, "target_size_height", "target_size_width"));
}

LoweredOp upsample_bilinear(const Call& call) {
  auto s = sizes_of(call, "scale_factor_height", "scale_factor_width");
  if (call.flag("align_corners", true)) {
    return linear(call, s, align_corners);
  }
  return linear(
      call, s, call.flag("half_pixel_centers", true) ? half_pixel : scaled);
}

LoweredOp upsample_nearest_neighbor(const Call& call) {
  return nearest(
      call, sizes_of(call, "scale_factor_height", "scale_factor_width"));
}

constexpr Op table[] = {
    {"resize_bilinear",
     resize_bilinear,
     "iOS15 image_resizing: resize_bilinear"},
    {"resize_nearest_neighbor",
     resize_nearest_neighbor,
     "iOS15 image_resizing: resize_nearest_neighbor"},
    {"upsample_bilinear",
     upsample_bilinear,
     "iOS15 image_resizing: upsample_bilinear"},
    {"upsample_nearest_neighbor",
     upsample_nearest_neighbor,
     "iOS15 image_resizing: upsample_nearest_neighbor"},
};

}  // namespace

std::span<const Op> resize_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
