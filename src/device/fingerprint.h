// Tells by its rounding whether an engine or a CPU computed a product.
#pragma once

#include <cstdint>
#include <vector>

namespace mlx_ane {

/// engine: it rounded or overflowed as engines are reported to. cpu: it rounded
/// as IEEE says, so the engine was asked for and something else may have
/// answered. unknown: neither; M1 and M2 may be so.
enum class Fingerprint { engine, cpu, unknown };

/// "rounds like the engine", "asked only" or "unknown".
const char* to_string(Fingerprint fingerprint);

/// Known operands of one product y (s, n) = x (s, k) w (n, k)ᵀ, as fp16 bits:
/// y[0] is 2048·1 + 1·1, halfway between two halves, and y[1] is 40960, past
/// the sums that engines hold. s >= 1, k >= 2, n >= 2.
struct FingerprintOperands {
  std::vector<uint16_t> x;  // (s, k)
  std::vector<uint16_t> w;  // (n, k)
};
FingerprintOperands fingerprint_operands(int64_t s, int64_t k, int64_t n);

/// Judges y[0][0] and y[0][1], as fp16 bits. Sources: M6 study (M4, M6),
/// MiniMax-H3-Swift (M3 Ultra), ANEForge (M2 Pro, M5).
Fingerprint judge_fingerprint(uint16_t tie, uint16_t large);

}  // namespace mlx_ane
