// Thread-local buffers that keep their memory between calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace mlx_ane::host {

/// A growing buffer aligned to a cache line. Use it through scratch().
class ScratchBuffer {
 public:
  void* at_least(size_t bytes) {
    if (bytes > bytes_) {
      data_.reset();
      data_.reset(::operator new(bytes, alignment));
      bytes_ = bytes;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Delete {
    void operator()(void* p) const {
      ::operator delete(p, alignment);
    }
  };
  std::unique_ptr<void, Delete> data_;
  size_t bytes_ = 0;
};

/// This thread's buffer for one purpose, named by the type Use: n elements of
/// T, of any value, valid until the next call with the same Use.
template <class Use, class T>
T* scratch(int64_t n) {
  static thread_local ScratchBuffer buffer;
  return static_cast<T*>(buffer.at_least(static_cast<size_t>(n) * sizeof(T)));
}

}  // namespace mlx_ane::host
