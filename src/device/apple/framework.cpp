// Opens frameworks, and knows this machine.
#include <dlfcn.h>

#include <cstdlib>

#include "device/apple/objc.h"
#include "device/apple/route.h"
#include "device/apple/system.h"
#include "mil/chips.h"

namespace mlx_ane::apple {

namespace {

/// The binaries live in the system's shared cache: only dlopen can tell.
std::string framework_path(const char* kind, const std::string& name) {
#if defined(MLX_ANE_DOUBLES_DIR)
  static_cast<void>(kind);
  auto chosen = std::getenv("DOUBLES_FRAMEWORKS");
  auto folder = std::string(chosen ? chosen : MLX_ANE_DOUBLES_DIR);
#else
  auto folder = std::string("/System/Library/") + kind;
#endif
  return folder + "/" + name + ".framework/" + name;
}

/// Architecture by processor ("Apple M2 Max"), where nothing else tells it.
std::string chip_of(std::string_view processor) {
  constexpr std::string_view maker = "Apple ";
  if (processor.starts_with(maker)) {
    processor.remove_prefix(maker.size());
  }
  auto chip = mil::find_chip(processor);
  return chip ? chip->architecture : "unknown";
}

}  // namespace

std::map<std::string, std::string> engine_facts() {
  std::map<std::string, std::string> facts;
  facts["processor"] = sysctl_text("machdep.cpu.brand_string");
  facts["model"] = sysctl_text("hw.model");
  facts["chip"] = chip_of(facts["processor"]);
#ifndef MLX_ANE_PUBLIC_ONLY
  try {
    read_device_info(facts);
  } catch (const DeviceError& error) {
    facts["device_info"] = error.what();
  }
#endif
  return facts;
}

std::optional<std::string> open_framework(
    const char* kind, const char* name, void** handle) {
  *handle = dlopen(framework_path(kind, name).c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (*handle != nullptr) {
    return std::nullopt;
  }
  auto error = dlerror();
  return std::string(name) + ".framework cannot be opened (" +
         (error ? error : "no reason given") + ")";
}

}  // namespace mlx_ane::apple
