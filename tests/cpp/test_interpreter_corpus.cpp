// Replays what the fuzzer of the interpreter found: a crash or a report fails.
#include <filesystem>
#include <fstream>
#include <iterator>

#include "../fuzz/interpreter_target.h"
#include "check.h"

TEST(interpreter_corpus) {
  auto tests = std::filesystem::path(__FILE__).parent_path().parent_path();
  int count = 0;
  for (auto& entry : std::filesystem::directory_iterator(
           tests / "fuzz/corpus/fuzz_interpreter")) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
    fuzz::interpreter({bytes.data(), bytes.size()});
    ++count;
  }
  CHECK(count > 100);
}

CHECK_MAIN()
