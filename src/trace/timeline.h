// Spans of work, recorded while a timeline is open, as Chrome trace events.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

namespace mlx_ane::trace {

/// Starts recording; what an earlier timeline left is dropped.
void start_timeline();

/// Stops recording and returns the JSON array of complete ("ph": "X") events.
std::string stop_timeline();

bool timeline_open();

/// Records from construction to destruction; costs one load when closed.
class Span {
 public:
  /// `kind` is a literal such as "pack" or "gemm_dw".
  Span(const char* kind, const std::string& layer, int64_t bytes, int64_t flops)
      : kind_(timeline_open() ? kind : nullptr) {
    if (kind_) {
      begin(layer, bytes, flops);
    }
  }
  ~Span() {
    if (kind_) {
      end();
    }
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  void begin(const std::string& layer, int64_t bytes, int64_t flops);
  void end();

  const char* kind_;
  std::string layer_;
  int64_t bytes_ = 0;
  int64_t flops_ = 0;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace mlx_ane::trace
