// Fuzzer of the emulated engine's interpreter; tools/fuzz.sh runs it.
#include <cstdint>

#include "interpreter_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::interpreter({reinterpret_cast<const char*>(data), size});
  return 0;
}
