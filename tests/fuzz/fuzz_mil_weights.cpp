// Fuzzer of weight files; tools/fuzz.sh runs it.
#include <cstdint>

#include "mil_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::weight_file({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
