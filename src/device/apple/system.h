// This machine and this process: OS build, chip, fork.
#pragma once

#include <string>

namespace mlx_ane::apple {

/// A sysctl by name as text, for example kern.osversion; "" where it is
/// missing.
std::string sysctl_text(const char* name);

/// The build of the system, for example "25E236".
const std::string& os_build();

/// The engine's connection dies in a forked child. Throws DeviceError in any
/// process but the one that called this first.
void require_same_process();

/// The same as a question, for destructors.
bool in_same_process();

/// "device-build-version", in characters that are safe in a file name.
std::string file_key(const std::string& text);

/// 16 hexadecimal digits of FNV-1a. A name, not a proof: what is found under it
/// is compared with what was asked for.
std::string hash_text(const void* bytes, size_t size);

}  // namespace mlx_ane::apple
