// Opens the private frameworks and reads what they say of the device.
#include <dlfcn.h>

#include <cstdlib>
#include <utility>

#include "device/apple/objc.h"
#include "device/apple/route.h"
#include "device/apple/system.h"
#include "mil/chips.h"

namespace mlx_ane::apple {

namespace {

/// The binaries live in the system's shared cache: only dlopen can tell.
std::string framework_path(const std::string& name) {
#if defined(MLX_ANE_DOUBLES_DIR)
  auto chosen = std::getenv("DOUBLES_FRAMEWORKS");
  auto folder = std::string(chosen ? chosen : MLX_ANE_DOUBLES_DIR);
#else
  const std::string folder = "/System/Library/PrivateFrameworks";
#endif
  return folder + "/" + name + ".framework/" + name;
}

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

/// Architecture by processor ("Apple M2 Max"), where the framework does not
/// tell it.
std::string chip_of(std::string_view processor) {
  constexpr std::string_view maker = "Apple ";
  if (processor.starts_with(maker)) {
    processor.remove_prefix(maker.size());
  }
  auto chip = mil::find_chip(processor);
  return chip ? chip->architecture : "unknown";
}

void read_device_info(std::map<std::string, std::string>& facts) {
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
  });
}

}  // namespace

std::map<std::string, std::string> engine_facts() {
  std::map<std::string, std::string> facts;
  facts["processor"] = sysctl_text("machdep.cpu.brand_string");
  facts["model"] = sysctl_text("hw.model");
  void* handle = nullptr;
  if (!open_framework("AppleNeuralEngine", &handle)) {
    try {
      read_device_info(facts);
    } catch (const DeviceError& error) {
      facts["device_info"] = error.what();
    }
  }
  auto& chip = facts["chip"];
  chip = facts.contains("aneArchitectureType") ? facts["aneArchitectureType"]
                                               : chip_of(facts["processor"]);
  return facts;
}

std::optional<std::string> open_framework(const char* name, void** handle) {
  *handle = dlopen(framework_path(name).c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (*handle != nullptr) {
    return std::nullopt;
  }
  auto error = dlerror();
  return std::string(name) + ".framework cannot be opened (" +
         (error ? error : "no reason given") + ")";
}

}  // namespace mlx_ane::apple
