// Objective-C blocks made by hand, and completion handlers that are waited for.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>

#include "device/apple/coreml_abi.h"
#include "device/apple/objc.h"

namespace mlx_ane::apple::coreml {

/// A block void (^)(A...), as the Block ABI lays it out: GCC has none of its
/// own. What a framework copies of it may outlive this object.
template <class... A>
class Block {
 public:
  explicit Block(std::function<void(A...)> body)
      : literal_{
            _NSConcreteStackBlock,
            has_copy_dispose,
            0,
            &invoke,
            &descriptor,
            std::make_shared<const std::function<void(A...)>>(
                std::move(body))} {
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  id get() {
    return reinterpret_cast<id>(&literal_);
  }

 private:
  static constexpr int has_copy_dispose = 1 << 25;
  struct Descriptor {
    unsigned long reserved;
    unsigned long size;
    void (*copy)(void* to, const void* from);
    void (*dispose)(const void* block);
  };
  struct Literal {
    void* isa;
    int flags;
    int reserved;
    void (*invoke)(Literal*, A...);
    const Descriptor* descriptor;
    std::shared_ptr<const std::function<void(A...)>> body;
  };

  static void invoke(Literal* block, A... arguments) {
    auto body = block->body;  // the block may be gone before the body is done
    (*body)(arguments...);
  }
  // The bytes are copied already: what they share is counted here.
  static void copy(void* to, const void* from) {
    new (&static_cast<Literal*>(to)->body)
        std::shared_ptr(static_cast<const Literal*>(from)->body);
  }
  static void dispose(const void* block) {
    std::destroy_at(&static_cast<const Literal*>(block)->body);
  }
  static constexpr Descriptor descriptor{0, sizeof(Literal), &copy, &dispose};

  Literal literal_;
};

using Deadline = std::chrono::steady_clock::time_point;

/// A handler void (^)(id object, NSError* error) and what it was called with.
class Completion {
 public:
  Completion();
  id handler() {
    return block_.get();
  }
  /// The object. DeviceError{hang} that begins with `what` if the handler has
  /// not been called by then, {cause} if it came without an object.
  Ref wait(Deadline deadline, Cause cause, std::string_view what);

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    Ref object;
    std::string error;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
  Block<id, id> block_;
};

/// An NSError's description without its final full stop.
std::string error_text(id error);

}  // namespace mlx_ane::apple::coreml
