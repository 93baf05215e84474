// Counts of what ran where: process-wide by name, and per layer.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace mlx_ane::trace {

/// Process-wide counts. The names in counters() are these identifiers.
enum class Counter {
  linear_calls,
  matmul_calls,
  block_calls,
  block_retried,
  device_calls,
  evaluations,
  gemm_forward,
  gemm_dx,
  gemm_dw,
  gemm_other,
  adam_steps,
  adam_tensors,
  adam_donated,
  adam_allocated,
  adam_skipped,
  compiles,
  executables_evicted,
  executables_merged,
  padded_rows,
  block_packed_bytes,
  weights_packed_bytes,
  weights_staged_bytes,
  weights_updated_bytes,
  weight_store_hits,
  weight_store_misses,
  weight_store_over_budget,
  spot_checks,
  count_,
};

/// Why a call was placed on the BLAS before it was made.
enum class Placement {
  device_cpu,
  few_rows,
  out_of_range,
  back_off,
  device_out,
  over_budget,
  by_coreml,     // Core ML itself would run it on the CPU
  kv_cache,      // a block that would write to an argument
  untranslated,  // a block that is no program
  count_,
};
const char* to_string(Placement placement);
/// By its name; std::invalid_argument otherwise.
Placement placement_from(const std::string& name);

void add(Counter counter, int64_t n = 1);

/// One fallback, by the name of its cause.
void add_fallback(const std::string& cause);

/// What one layer did. Shared by every primitive of that name. Calls that ran
/// on a device, were placed and fell back add up to `calls`.
class Layer {
 public:
  explicit Layer(std::string name) : name(std::move(name)) {
  }

  const std::string name;
  std::atomic<int64_t> calls{0};
  std::atomic<int64_t> device_calls{0};
  std::array<std::atomic<int64_t>, static_cast<size_t>(Placement::count_)>
      placed{};
  std::atomic<int64_t> bytes{0};
  std::atomic<int64_t> nanoseconds{0};

  void place(Placement reason);
  void fall_back(const std::string& cause);
  std::map<std::string, double> stats() const;
  void reset();

 private:
  std::map<std::string, int64_t> fallbacks_;
};

/// The record of a layer; an empty name is the anonymous record.
std::shared_ptr<Layer> layer(const std::string& name);

/// Ends the record of a layer that is gone: the name is free for another.
void forget_layer(const std::string& name);

/// Every count by name, zeros included; placements as "placed_<reason>" and
/// fallbacks as "fallback_<cause>".
std::map<std::string, int64_t> counters();
std::map<std::string, std::map<std::string, double>> layer_counters();
void reset_counters();

}  // namespace mlx_ane::trace
