// What the tests of the Apple route share: a matmul to run, and the balance.
#pragma once

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "check.h"
#include "device/apple/apple.h"
#include "device/apple/staging.h"
#include "device/programs.h"
#include "doubles.h"
#include "host/half.h"

namespace apple_test {

using namespace mlx_ane;

/// A cache of this test program's own, so that runs do not meet.
inline void use_fresh_cache() {
  static auto folder = [] {
    auto pattern =
        (std::filesystem::temp_directory_path() / "apple_cache_XXXXXX")
            .string();
    auto made = std::string(mkdtemp(pattern.data()));
    static struct Remove {
      std::string path;
      ~Remove() {
        std::filesystem::remove_all(path);
      }
    } remove{made};
    return made;
  }();
  setenv("MLX_ANE_CACHE_DIR", folder.c_str(), 1);
}

inline std::filesystem::path programs_cache() {
  return std::filesystem::path(std::getenv("MLX_ANE_CACHE_DIR")) / "programs";
}

/// Asymmetric data, so that a swapped or transposed operand shows.
inline float x_value(int64_t r, int64_t c) {
  return static_cast<float>((r * 7 + c * 3) % 11 - 4) / 8;
}
inline float w_value(int64_t r, int64_t c) {
  return static_cast<float>((r * 5 + c) % 13 - 3) / 16;
}

template <class F>
void fill(Surface& surface, const Port& port, Layout layout, F value) {
  SurfaceLock lock(surface, Surface::Access::write);
  auto halves = reinterpret_cast<uint16_t*>(lock.data());
  auto ld = row_bytes(port) / 2;
  bool natural = layout == Layout::natural;
  auto rows = natural ? port.shape[2] : port.shape[1];
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < port.shape[3]; ++c) {
      halves[r * ld + c] =
          host::float_to_half(natural ? value(r, c) : value(c, r));
    }
  }
}

/// A loaded matmul with its surfaces; run() gives max |y - x wᵀ|.
struct Matmul {
  MatmulShape shape;
  Source source;
  std::shared_ptr<Executable> executable;
  std::shared_ptr<Surface> x, w, y;

  Matmul(
      Device& device,
      MatmulShape shape = {64, 32, 96, Layout::natural},
      mil::Dialect dialect = mil::Dialect::ios18)
      : shape(shape), source(matmul_source(shape, dialect)) {
    executable = device.compile(source);
    auto bytes = input_surface_bytes(shape);
    x = device.make_surface(bytes, source.inputs[0]);
    w = device.make_surface(bytes, source.inputs[1]);
    y = device.make_surface(
        surface_bytes(source.outputs[0]), source.outputs[0]);
    fill(*x, source.inputs[0], shape.layout, x_value);
    fill(*w, source.inputs[1], shape.layout, w_value);
  }

  float run() {
    Surface* inputs[] = {x.get(), w.get()};
    Surface* outputs[] = {y.get()};
    executable->evaluate(inputs, outputs);
    SurfaceLock lock(*y, Surface::Access::read);
    auto halves = reinterpret_cast<const uint16_t*>(lock.data());
    auto ld = row_bytes(source.outputs[0]) / 2;
    float worst = 0;
    for (int64_t r = 0; r < shape.s; ++r) {
      for (int64_t c = 0; c < shape.n; ++c) {
        float sum = 0;
        for (int64_t k = 0; k < shape.k; ++k) {
          sum += x_value(r, k) * w_value(c, k);
        }
        worst = std::max(
            worst, std::abs(host::half_to_float(halves[r * ld + c]) - sum));
      }
    }
    return worst;
  }
};

/// Rounding of sums of magnitude below 8 to fp16.
inline constexpr float tolerance = 4e-3f;

/// Nothing of the frameworks is alive, nothing is staged.
inline bool balanced() {
  bool level = true;
  for (size_t i = 0; double_kind(i); ++i) {
    if (auto live = double_live(double_kind(i))) {
      std::printf("  %d %s alive\n", live, double_kind(i));
      level = false;
    }
  }
  for (auto& entry :
       std::filesystem::directory_iterator(apple::process_directory())) {
    if (entry.path().filename() != "lock") {
      std::printf("  %s left\n", entry.path().c_str());
      level = false;
    }
  }
  return level;
}

}  // namespace apple_test
