// Tells by its rounding whether an engine or a CPU computed a product.
#include "device/fingerprint.h"

#include <cmath>

#include "host/half.h"

namespace mlx_ane {

const char* to_string(Fingerprint fingerprint) {
  switch (fingerprint) {
    case Fingerprint::engine:
      return "rounds like the engine";
    case Fingerprint::cpu:
      return "asked only";
    case Fingerprint::unknown:
      return "unknown";
  }
  return "unknown";
}

FingerprintOperands fingerprint_operands(int64_t s, int64_t k, int64_t n) {
  FingerprintOperands out{
      std::vector<uint16_t>(s * k), std::vector<uint16_t>(n * k)};
  out.x[0] = host::float_to_half(2048.0f);
  out.x[1] = host::float_to_half(1.0f);
  out.w[0] = out.w[1] = host::float_to_half(1.0f);
  out.w[k] = host::float_to_half(20.0f);
  return out;
}

// Ties go away from zero on an engine and to even on a CPU; sums past 2^15 are
// infinite (M2, M4, M5) or zero (M3) on an engine.
Fingerprint judge_fingerprint(uint16_t tie_bits, uint16_t large_bits) {
  auto tie = host::half_to_float(tie_bits);
  auto large = host::half_to_float(large_bits);
  bool held = large == 40960.0f;
  bool lost = large == 0.0f || std::isinf(large);
  if (tie == 2050.0f && (held || lost)) {
    return Fingerprint::engine;
  }
  if (tie == 2048.0f && (held || lost)) {
    return lost ? Fingerprint::engine : Fingerprint::cpu;
  }
  return Fingerprint::unknown;
}

}  // namespace mlx_ane
