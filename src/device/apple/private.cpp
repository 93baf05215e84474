// What is private of Apple's: its frameworks, and what they say of the device.
// Not compiled where only public API is allowed.
#include "device/apple/objc.h"
#include "device/apple/route.h"

namespace mlx_ane::apple {

namespace {

/// A getter's value as text, by the type that the runtime declares for it.
std::string read_fact(id cls, const char* selector) {
  auto method =
      class_getInstanceMethod(object_getClass(cls), sel_registerName(selector));
  if (method == nullptr) {
    return "";
  }
  char type[32] = {};
  method_getReturnType(method, type, sizeof(type));
  switch (type[0]) {
    case '@':
      return describe(send(cls, selector), "");
    case 'B':
    case 'c':
    case 'C':
      return send<unsigned char>(cls, selector) ? "yes" : "no";
    case 'i':
    case 'I':
      return std::to_string(send<int>(cls, selector));
    case 'q':
    case 'Q':
    case 'l':
    case 'L':
      return std::to_string(send<long>(cls, selector));
    default:
      return "";
  }
}

}  // namespace

void read_device_info(std::map<std::string, std::string>& facts) {
  void* handle = nullptr;
  if (open_private_framework("AppleNeuralEngine", &handle)) {
    return;
  }
  auto cls = reinterpret_cast<id>(objc_getClass("_ANEDeviceInfo"));
  if (cls == nullptr) {
    return;
  }
  guarded(Cause::unavailable, "_ANEDeviceInfo", [&] {
    for (auto selector :
         {"hasANE",
          "numANEs",
          "numANECores",
          "aneArchitectureType",
          "aneSubType",
          "aneSubTypeVariant",
          "buildVersion"}) {
      auto value = read_fact(cls, selector);
      if (!value.empty()) {
        facts[selector] = value;
      }
    }
    if (facts.contains("aneArchitectureType")) {
      facts["chip"] = facts["aneArchitectureType"];
    }
  });
}

std::optional<std::string> open_private_framework(
    const char* name, void** handle) {
  return open_framework("PrivateFrameworks", name, handle);
}

}  // namespace mlx_ane::apple
