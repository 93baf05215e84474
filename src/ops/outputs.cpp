// Freed buffers in the order of their age; the oldest go when they are too
// many.
#include "ops/outputs.h"

#include <cstdint>
#include <mutex>

#include "host/environment.h"
#include "host/process.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mlx_ane {

namespace {

using mx::allocator::Buffer;

/// Below this, the C library keeps freed memory itself.
constexpr size_t smallest = 1 << 20;
constexpr int64_t default_limit = int64_t{1} << 30;

class KeptOutputs {
 public:
  /// A buffer of exactly `bytes`, as training asks for again; null if none is
  /// kept.
  Buffer take(size_t bytes) {
    std::lock_guard lock(mutex_);
    // The latest first: it may still be in a cache.
    for (auto i = buffers_.rbegin(); i != buffers_.rend(); ++i) {
      if (i->bytes == bytes) {
        Buffer buffer = i->buffer;
        bytes_ -= i->bytes;
        buffers_.erase(std::next(i).base());
        return buffer;
      }
    }
    return Buffer{nullptr};
  }

  void keep(Buffer buffer) {
    size_t bytes = mx::allocator::allocator().size(buffer);
    std::lock_guard lock(mutex_);
    buffers_.push_back({buffer, bytes});
    bytes_ += bytes;
    free_down_to(kept_output_limit());
  }

  void clear() {
    std::lock_guard lock(mutex_);
    free_down_to(0);
  }

  size_t bytes() {
    std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  struct Kept {
    Buffer buffer;
    size_t bytes;
  };

  void free_down_to(size_t bytes) {
    auto last = buffers_.begin();
    for (; bytes_ > bytes; ++last) {
      mx::allocator::allocator().free(last->buffer);
      bytes_ -= last->bytes;
    }
    buffers_.erase(buffers_.begin(), last);
  }

  std::mutex mutex_;
  std::vector<Kept> buffers_;  // the oldest first
  size_t bytes_ = 0;
};

KeptOutputs& kept_outputs() {
  return host::of_process<KeptOutputs>();
}

/// Asks for huge pages: a product's columns then fit the TLB. They may have to
/// be made free first, which pays for buffers that are kept only.
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
  bool kept = out.nbytes() >= smallest && out.nbytes() <= kept_output_limit();
  if (!kept || mlx_has_a_cache()) {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    return;
  }
  Buffer buffer = kept_outputs().take(out.nbytes());
  if (buffer.ptr() == nullptr) {
    buffer = new_buffer(out.nbytes());
  }
  out.set_data(mx::allocator::Data(buffer, [](Buffer freed) {
    kept_outputs().keep(freed);
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
  return bytes;
}

size_t kept_output_bytes() {
  return kept_outputs().bytes();
}

void clear_kept_outputs() {
  kept_outputs().clear();
}

}  // namespace mlx_ane
