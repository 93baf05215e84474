// Fingerprints: what engines and CPUs are reported to answer, and the emulated
// engine in both numerics.
#include "device/fingerprint.h"

#include <algorithm>
#include <limits>

#include "check.h"
#include "device/emulated/emulated.h"
#include "device/programs.h"
#include "host/half.h"

using namespace mlx_ane;

namespace {

Fingerprint judged(float tie, float large) {
  return judge_fingerprint(
      host::float_to_half(tie), host::float_to_half(large));
}

/// The fingerprint of a product on the emulated engine.
Fingerprint emulated_fingerprint(bool exact) {
  auto options = emulated::options();
  options.exact = exact;
  emulated::configure(options);
  auto device = make_emulated_device();
  constexpr int64_t s = 64, k = 32, n = 96;
  auto source = matmul_source({s, k, n, Layout::natural}, mil::Dialect::ios18);
  auto operands = fingerprint_operands(s, k, n);
  auto bytes = std::max(
      surface_bytes(source.inputs[0]), surface_bytes(source.inputs[1]));
  auto x = device->make_surface(bytes), w = device->make_surface(bytes);
  auto y = device->make_surface(surface_bytes(source.outputs[0]));
  auto write = [](Surface& surface, const std::vector<uint16_t>& values) {
    SurfaceLock lock(surface, Surface::Access::write);
    std::copy(
        values.begin(), values.end(), reinterpret_cast<uint16_t*>(lock.data()));
  };
  write(*x, operands.x);  // rows of 32 halves are dense
  write(*w, operands.w);
  Surface* inputs[] = {x.get(), w.get()};
  Surface* outputs[] = {y.get()};
  device->compile(source)->evaluate(inputs, outputs);
  SurfaceLock lock(*y, Surface::Access::read);
  auto halves = reinterpret_cast<const uint16_t*>(lock.data());
  return judge_fingerprint(halves[0], halves[1]);
}

}  // namespace

TEST(reported_answers) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  CHECK(judged(2050, inf) == Fingerprint::engine);  // M4, M6
  CHECK(judged(2050, 0) == Fingerprint::engine);    // M3 Ultra
  CHECK(judged(2048, inf) == Fingerprint::engine);  // M2 Pro, M5
  CHECK(judged(2050, 40960) == Fingerprint::engine);
  CHECK(judged(2048, 40960) == Fingerprint::cpu);
  CHECK(judged(2052, 40960) == Fingerprint::unknown);
  CHECK(judged(0, 0) == Fingerprint::unknown);  // nothing was written
  CHECK(judged(2048, 40928) == Fingerprint::unknown);
}

TEST(emulated_numerics) {
  CHECK(emulated_fingerprint(true) == Fingerprint::engine);
  CHECK(emulated_fingerprint(false) == Fingerprint::cpu);
}

TEST(words) {
  CHECK(
      to_string(Fingerprint::engine) == std::string("rounds like the engine"));
  CHECK(to_string(Fingerprint::cpu) == std::string("asked only"));
  CHECK(to_string(Fingerprint::unknown) == std::string("unknown"));
}

CHECK_MAIN()
