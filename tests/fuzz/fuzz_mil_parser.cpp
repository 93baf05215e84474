// Fuzzer of MIL text; tools/fuzz.sh runs it.
#include <cstdint>

#include "mil_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::mil_text({reinterpret_cast<const char*>(data), size});
  return 0;
}
