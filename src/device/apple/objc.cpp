// Objective-C from C++: the parts that need no template.
#include "device/apple/objc.h"

namespace mlx_ane::apple {

namespace {

/// The kinds of a method's encoding, "B40@0:8I16@20^@28" -> "iiipp" and so on;
/// "" where it cannot be read.
std::string kinds_of(const char* encoding) {
  std::string kinds;
  for (auto c = encoding; c && *c; ++c) {
    switch (*c) {
      case '@':
      case '#':
      case ':':
      case '*':
        kinds += 'p';
        // Of a block, or of an object with its class's name.
        if (c[0] == '@' && c[1] == '?') {
          ++c;
        }
        break;
      case '^':
        kinds += 'p';
        while (c[1] == '^') {
          ++c;
        }
        if (c[1] == '{') {
          while (*++c && *c != '}') {
          }
        } else if (c[1]) {
          ++c;
        }
        if (!*c) {
          return "";
        }
        break;
      case 'v':
        kinds += 'v';
        break;
      case 'f':
      case 'd':
        kinds += 'f';
        break;
      case '{':
      case '(':
      case '[':
        return "";
      default:
        if (std::string_view("BcCsSiIlLqQ").find(*c) != std::string::npos) {
          kinds += 'i';
        }
    }
  }
  return kinds;
}

}  // namespace

id class_named(const char* name) {
  auto cls = reinterpret_cast<id>(objc_getClass(name));
  if (cls == nullptr) {
    throw DeviceError(
        Cause::unavailable,
        "[mlx_ane.ane] class " + std::string(name) +
            " is missing on this macOS.");
  }
  return cls;
}

bool responds(id object, const char* selector) {
  return object != nullptr &&
         class_respondsToSelector(
             object_getClass(object), sel_registerName(selector));
}

std::optional<std::string> find_missing(
    std::initializer_list<Selector> selectors) {
  for (auto& selector : selectors) {
    auto cls = objc_getClass(selector.cls);
    if (cls == nullptr) {
      return "class " + std::string(selector.cls) + " is missing on this macOS";
    }
    // A class method is an instance method of the class's class.
    auto holder = selector.of_class ? object_getClass(reinterpret_cast<id>(cls))
                                    : reinterpret_cast<Class>(cls);
    auto name = sel_registerName(selector.name);
    auto full = "selector " + std::string(selector.of_class ? "+[" : "-[") +
                selector.cls + " " + selector.name + "]";
    if (!class_respondsToSelector(holder, name)) {
      return full + " is missing on this macOS";
    }
    auto method = class_getInstanceMethod(holder, name);
    auto encoding = method ? method_getTypeEncoding(method) : nullptr;
    auto kinds = kinds_of(encoding);
    // Object and selector stand before the arguments.
    auto expected =
        std::string(1, selector.kinds[0]) + "pp" + (selector.kinds + 1);
    if (!kinds.empty() && kinds != expected) {
      return full + " takes other values (" + encoding + ") on this macOS";
    }
  }
  return std::nullopt;
}

IMP implementation(id object, const char* selector) {
  Class cls = object_getClass(object);
  SEL name = sel_registerName(selector);
  if (!class_respondsToSelector(cls, name)) {
    throw DeviceError(
        Cause::unavailable,
        "[mlx_ane.ane] selector " + std::string(selector) + " of " +
            class_getName(cls) + " is missing on this macOS.");
  }
  return class_getMethodImplementation(cls, name);
}

Pool::Pool()
    : pool_(send(send(class_named("NSAutoreleasePool"), "alloc"), "init")) {
}

Pool::~Pool() {
  send<void>(pool_, "drain");
}

id string(const std::string& text) {
  return send(class_named("NSString"), "stringWithUTF8String:", text.c_str());
}

id number(long long value) {
  return send(class_named("NSNumber"), "numberWithLongLong:", value);
}

id data(const void* bytes, size_t size) {
  return send(
      class_named("NSData"),
      "dataWithBytes:length:",
      bytes,
      static_cast<unsigned long>(size));
}

id file_url(const std::string& directory) {
  return send(
      class_named("NSURL"),
      "fileURLWithPath:isDirectory:",
      string(directory),
      static_cast<ObjcBool>(true));
}

id dictionary() {
  return send(class_named("NSMutableDictionary"), "dictionary");
}

id array() {
  return send(class_named("NSMutableArray"), "array");
}

void set(id dictionary, id key, id value) {
  send<void>(dictionary, "setObject:forKey:", value, key);
}

void append(id array, id value) {
  send<void>(array, "addObject:", value);
}

id lookup(id object, const char* key) {
  return responds(object, "objectForKey:")
             ? send(object, "objectForKey:", string(key))
             : nullptr;
}

size_t count(id array) {
  return responds(array, "count") ? send<unsigned long>(array, "count") : 0;
}

id element(id array, size_t index) {
  return send(array, "objectAtIndex:", static_cast<unsigned long>(index));
}

std::string to_text(id string) {
  auto text = responds(string, "UTF8String")
                  ? send<const char*>(string, "UTF8String")
                  : nullptr;
  return text ? text : "";
}

std::string describe(id object, const char* otherwise) {
  return object ? to_text(send(object, "description")) : otherwise;
}

void guarded_call(
    Cause cause, std::string_view what, void (*body)(void*), void* context) {
  Pool pool;
  id exception = nullptr;
  if (mlx_ane_objc_try(body, context, &exception) == 0) {
    return;
  }
  auto name = responds(exception, "name")
                  ? to_text(send(exception, "name")) + ": "
                  : std::string();
  auto reason = responds(exception, "reason")
                    ? to_text(send(exception, "reason"))
                    : describe(exception, "no reason");
  throw DeviceError(
      cause,
      "[mlx_ane.ane] " + std::string(what) +
          " raised an Objective-C exception: " + name + reason + ".");
}

}  // namespace mlx_ane::apple
