// The emulated device: programs through surfaces, limits, faults and numerics.
#include "check.h"
#include "device/device.h"
#include "device/programs.h"
#include "kernels/half.h"

using namespace mlx_ane;

namespace {

void fill(Surface& surface, const Port& port, float (*value)(int64_t, int64_t)) {
  SurfaceLock lock(surface, Surface::Access::write);
  auto cols = port.shape.back();
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < port.shape.size(); ++d) {
    rows *= port.shape[d];
  }
  for (int64_t r = 0; r < rows; ++r) {
    auto* row =
        reinterpret_cast<uint16_t*>(lock.data() + r * row_bytes(port));
    for (int64_t c = 0; c < cols; ++c) {
      row[c] = kernels::float_to_half(value(r, c));
    }
  }
}

float read(Surface& surface, const Port& port, int64_t r, int64_t c) {
  SurfaceLock lock(surface, Surface::Access::read);
  auto* row = reinterpret_cast<uint16_t*>(lock.data() + r * row_bytes(port));
  return kernels::half_to_float(row[c]);
}

} // namespace

TEST(matmul_program_of_both_layouts_and_dialects) {
  auto& device = get_device("emulated");
  for (auto layout : {Layout::natural, Layout::channels_first}) {
    for (auto dialect : {mil::Dialect::ios18, mil::Dialect::ios16}) {
      auto source = matmul_source({64, 96, 128, layout}, dialect);
      auto executable = device.compile(source);
      auto bytes = surface_bytes(source.inputs[1]);
      auto x = device.make_surface(bytes), w = device.make_surface(bytes);
      auto y = device.make_surface(surface_bytes(source.outputs[0]));
      auto one = [](int64_t r, int64_t c) {
        return static_cast<float>((r * 7 + c * 3) % 11 - 5) / 8;
      };
      auto two = [](int64_t r, int64_t c) {
        return static_cast<float>((r * 5 + c * 2) % 13 - 6) / 8;
      };
      fill(*x, source.inputs[0], one);
      fill(*w, source.inputs[1], two);
      Surface* in[] = {x.get(), w.get()};
      Surface* out[] = {y.get()};
      executable->evaluate(in, out);
      for (int64_t i : {0, 17, 63}) {
        for (int64_t j : {0, 5, 127}) {
          float sum = 0;
          for (int64_t k = 0; k < 96; ++k) {
            sum += layout == Layout::natural ? one(i, k) * two(j, k)
                                             : one(k, i) * two(k, j);
          }
          auto want = kernels::half_to_float(kernels::float_to_half(sum));
          CHECK(read(*y, source.outputs[0], i, j) == want);
        }
      }
    }
  }
}

CHECK_MAIN()
