// This machine and this process: OS build, chip, fork.
#include "device/apple/system.h"

#include <unistd.h>

#include <atomic>
#include <cctype>
#include <cstdio>

#include "device/apple/apple_abi.h"
#include "device/device.h"

namespace mlx_ane::apple {

namespace {

/// 0 until the first use of the engine.
std::atomic<pid_t> owner{0};

}  // namespace

std::string sysctl_text(const char* name) {
  char value[256];
  size_t size = sizeof(value);
  if (sysctlbyname(name, value, &size, nullptr, 0) != 0 || size == 0) {
    return "";
  }
  return std::string(value, size - 1);
}

const std::string& os_build() {
  static const std::string build = [] {
    auto text = sysctl_text("kern.osversion");
    return text.empty() ? std::string("unknown") : text;
  }();
  return build;
}

bool in_same_process() {
  pid_t expected = 0;
  auto self = getpid();
  return owner.compare_exchange_strong(expected, self) || expected == self;
}

void require_same_process() {
  if (!in_same_process()) {
    throw DeviceError(
        Cause::unavailable,
        "[mlx_ane.ane] got a call in a process forked from " +
            std::to_string(owner.load()) +
            ", need the process that opened the Neural Engine, start workers "
            "with multiprocessing's \"spawn\".");
  }
}

std::string file_key(const std::string& text) {
  std::string key;
  for (unsigned char c : text) {
    key += std::isalnum(c) || c == '.' ? static_cast<char>(c) : '_';
  }
  return key;
}

std::string hash_text(const void* bytes, size_t size) {
  uint64_t hash = 0xcbf29ce484222325u;
  auto data = static_cast<const unsigned char*>(bytes);
  for (size_t i = 0; i < size; ++i) {
    hash = (hash ^ data[i]) * 0x100000001b3u;
  }
  char text[17];
  std::snprintf(
      text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace mlx_ane::apple
