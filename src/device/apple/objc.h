// Objective-C from C++: typed messages, strong references, pools and
// exceptions.
#pragma once

#include <exception>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "device/apple/apple_abi.h"
#include "device/device.h"

namespace mlx_ane::apple {

/// The class of that name; DeviceError{unavailable} that names it otherwise.
id class_named(const char* name);

/// The implementation of a selector; DeviceError{unavailable} that names it
/// where this macOS does not have it.
IMP implementation(id object, const char* selector);

bool responds(id object, const char* selector);

/// A method that a route needs, of a class or of its objects.
struct Selector {
  const char* cls;
  bool of_class;
  const char* name;
  /// One letter a value, the result first: v nothing, i integer, p pointer.
  const char* kinds;
};

/// The first of these classes or selectors that this macOS lacks or has with
/// other kinds of values, as a sentence.
std::optional<std::string> find_missing(
    std::initializer_list<Selector> selectors);

/// [object selector:arguments...]. A message to nil returns R(). Through the
/// method's own address: objc_msgSend's variadic form breaks on arm64.
template <class R = id, class... A>
R send(id object, const char* selector, A... arguments) {
  if (object == nullptr) {
    return R();
  }
  auto method =
      reinterpret_cast<R (*)(id, SEL, A...)>(implementation(object, selector));
  return method(object, sel_registerName(selector), arguments...);
}

/// A strong reference.
class Ref {
 public:
  Ref() = default;
  /// Retains.
  explicit Ref(id object) : object_(send(object, "retain")) {
  }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {
  }
  Ref& operator=(Ref&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    send<void>(object_, "release");
  }
  id get() const {
    return object_;
  }
  /// Gives the reference up without releasing it (after fork).
  void leak() {
    object_ = nullptr;
  }
  explicit operator bool() const {
    return object_ != nullptr;
  }

 private:
  id object_ = nullptr;
};

/// Scope of an autorelease pool. Not movable, so never outlives its thread's.
class Pool {
 public:
  Pool();
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

 private:
  id pool_;
};

id string(const std::string& text);
id number(long long value);
id data(const void* bytes, size_t size);
id file_url(const std::string& directory);
id dictionary();
id array();
void set(id dictionary, id key, id value);
void append(id array, id value);
/// dictionary[key], or nil where `object` is no dictionary or lacks the key.
id lookup(id object, const char* key);
/// Elements of an NSArray; 0 for nil.
size_t count(id array);
id element(id array, size_t index);
std::string to_text(id string);
/// -description of any object; `otherwise` for nil.
std::string describe(id object, const char* otherwise);

/// Runs body inside a pool and an exception barrier. An Objective-C exception
/// becomes DeviceError{cause} that begins with `what`; C++ exceptions pass.
void guarded_call(
    Cause cause, std::string_view what, void (*body)(void*), void* context);

template <class F>
void guarded(Cause cause, std::string_view what, F&& body) {
  struct Context {
    F& body;
    std::exception_ptr error;
  } context{body, nullptr};
  guarded_call(
      cause,
      what,
      [](void* argument) {
        auto& c = *static_cast<Context*>(argument);
        // Stored: a C++ exception must not unwind through Objective-C frames.
        // catch (...) would swallow Objective-C exceptions with it.
        try {
          c.body();
        } catch (const std::exception&) {
          c.error = std::current_exception();
        }
      },
      &context);
  if (context.error) {
    std::rethrow_exception(context.error);
  }
}

}  // namespace mlx_ane::apple
