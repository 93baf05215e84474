// The cache of outputs: evicts the oldest buffers when new sizes appear.
#include "ops/outputs.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>

#include "device/device.h"
#include "host/environment.h"
#include "host/process.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mlx_ane {

namespace {

using mx::allocator::Buffer;

/// Below this, the C library keeps freed memory itself.
constexpr size_t min_bytes = 1 << 20;
constexpr int64_t default_limit = int64_t{1} << 30;

/// An unused buffer is evicted after allocations of this many times the bytes
/// held.
constexpr size_t patience = 8;

std::atomic<size_t>& set_limit() {
  static std::atomic<size_t> bytes = quarter_of_memory();
  return bytes;
}

/// A training step allocates the same sizes each time. So a miss evicts the
/// oldest buffers, up to twice its bytes, unless its size was evicted lately:
/// then the step needs both, and the cache grows.
class KeptOutputs {
 public:
  /// A buffer of exactly `bytes`; null if none is kept.
  Buffer take(size_t bytes) {
    std::lock_guard lock(mutex_);
    asked_ += bytes;
    auto buffer = find(bytes);
    if (buffer.ptr() == nullptr && !forget_gone(bytes)) {
      free_down_to(kept_ - std::min(kept_, 2 * bytes));
    }
    used_ += bytes;
    while (!buffers_.empty() &&
           asked_ - buffers_.front().asked > patience * (used_ + kept_)) {
      free_oldest();
    }
    return buffer;
  }

  void keep(Buffer buffer, size_t bytes) {
    std::lock_guard lock(mutex_);
    buffers_.push_back({buffer, bytes, asked_});
    used_ -= bytes;
    kept_ += bytes;
    free_down_to(kept_output_limit());
  }

  void shrink() {
    std::lock_guard lock(mutex_);
    free_down_to(kept_output_limit());
  }

  void clear() {
    std::lock_guard lock(mutex_);
    free_down_to(0);
    gone_.clear();
    gone_bytes_ = 0;
  }

  size_t bytes() {
    std::lock_guard lock(mutex_);
    return kept_;
  }

 private:
  struct Kept {
    Buffer buffer;
    size_t bytes;
    size_t asked;  // asked_ when it was freed
  };

  Buffer find(size_t bytes) {
    // The latest first: it may still be in the CPU's cache.
    for (auto i = buffers_.rbegin(); i != buffers_.rend(); ++i) {
      if (i->bytes == bytes) {
        Buffer buffer = i->buffer;
        kept_ -= bytes;
        buffers_.erase(std::next(i).base());
        return buffer;
      }
    }
    return Buffer{nullptr};
  }

  /// Whether a buffer of this size was evicted lately; says so once.
  bool forget_gone(size_t bytes) {
    auto found = std::find(gone_.begin(), gone_.end(), bytes);
    if (found == gone_.end()) {
      return false;
    }
    gone_.erase(found);
    gone_bytes_ -= bytes;
    return true;
  }

  void free_down_to(size_t bytes) {
    while (kept_ > bytes) {
      free_oldest();
    }
  }

  void free_oldest() {
    auto oldest = buffers_.front();
    buffers_.pop_front();
    mx::allocator::allocator().free(oldest.buffer);
    kept_ -= oldest.bytes;
    gone_.push_back(oldest.bytes);
    gone_bytes_ += oldest.bytes;
    while (gone_bytes_ > used_ + kept_ + oldest.bytes) {
      gone_bytes_ -= gone_.front();
      gone_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<Kept> buffers_;  // the oldest first
  size_t used_ = 0;           // bytes in use
  size_t kept_ = 0;           // bytes of buffers_
  size_t asked_ = 0;          // bytes ever allocated
  std::deque<size_t> gone_;   // sizes freed last, at most what is held
  size_t gone_bytes_ = 0;
};

KeptOutputs& kept_outputs() {
  return host::of_process<KeptOutputs>();
}

/// Asks for huge pages, so that a product's columns fit the TLB. Compaction may
/// cost time, which pays only for buffers that are cached.
Buffer new_buffer(size_t bytes) {
  Buffer buffer = mx::allocator::allocator().malloc(bytes);
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 2 << 20;
  auto begin = reinterpret_cast<uintptr_t>(buffer.raw_ptr());
  uintptr_t first = (begin + page - 1) / page * page;
  uintptr_t last = (begin + bytes) / page * page;
  if (last > first) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return buffer;
}

bool mlx_has_a_cache() {
  static const bool has = mx::is_available(mx::Device::gpu);
  return has;
}

}  // namespace

void allocate(mx::array& out) {
  bool kept = out.nbytes() >= min_bytes && out.nbytes() <= kept_output_limit();
  if (!kept || mlx_has_a_cache()) {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    return;
  }
  size_t bytes = out.nbytes();
  Buffer buffer = kept_outputs().take(bytes);
  if (buffer.ptr() == nullptr) {
    buffer = new_buffer(bytes);
  }
  out.set_data(mx::allocator::Data(buffer, [bytes](Buffer freed) {
    kept_outputs().keep(freed, bytes);
  }));
}

void allocate(std::vector<mx::array>& outputs) {
  for (auto& out : outputs) {
    allocate(out);
  }
}

size_t kept_output_limit() {
  static const auto bytes = static_cast<size_t>(
      host::count_variable("MLX_ANE_OUTPUT_CACHE", 0).value_or(default_limit));
  return std::min(bytes, set_limit().load());
}

void set_kept_output_limit(size_t bytes) {
  set_limit() = bytes;
  kept_outputs().shrink();
}

size_t kept_output_bytes() {
  return kept_outputs().bytes();
}

void clear_kept_outputs() {
  kept_outputs().clear();
}

}  // namespace mlx_ane
