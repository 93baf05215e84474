// Objective-C from C++: the parts that need no template.
#include "device/apple/objc.h"

namespace mlx_ane::apple {

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

std::optional<std::string> missing_selector(std::span<const Selector> needed) {
  for (auto& selector : needed) {
    auto cls = objc_getClass(selector.cls);
    if (cls == nullptr) {
      return "class " + std::string(selector.cls) + " is missing on this macOS";
    }
    // A class method is an instance method of the class's class.
    auto holder = selector.of_class ? object_getClass(reinterpret_cast<id>(cls))
                                    : reinterpret_cast<Class>(cls);
    if (!class_respondsToSelector(holder, sel_registerName(selector.name))) {
      return "selector " + std::string(selector.of_class ? "+[" : "-[") +
             selector.cls + " " + selector.name + "] is missing on this macOS";
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
